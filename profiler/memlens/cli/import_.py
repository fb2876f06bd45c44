"""`memlens import SNAPSHOT...`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command(name="import")
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output folder; must not exist. [default: memlens-runs/<time>-<name>]",
)
def command(snapshots: tuple[str, ...], out: Path | None) -> None:
    """Make a run of what torch.cuda.memory._dump_snapshot() has written.

    Several SNAPSHOTs become the ranks of one run, in the order in which they are named. Categories
    are inferred from stacks, lifetimes and sizes, and marked so. Snapshots are pickles: they are read
    without running anything that they hold.
    """
    from memlens.importing.convert import import_snapshots
    from memlens.options import Options

    paths = [Path(each) for each in snapshots]
    name = paths[0].name.partition(".")[0]
    run = import_snapshots(paths, Options(out=out, name=name))
    click.echo(f"{run}\nread it with: memlens report {run}")
