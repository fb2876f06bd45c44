"""`memlens export RUN --to tensorboard`."""

from __future__ import annotations

from pathlib import Path

import click

from memlens.exporters import EXPORTERS

__all__ = ["command"]


@click.command(name="export")
@click.argument("run")
@click.option("--to", type=click.Choice(list(EXPORTERS)), required=True, help="For which tool.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: one in RUN, named after the tool]",
)
def command(run: str, to: str, out: Path | None) -> None:
    """Write a run for another tool to show.

    RUN is the folder that `memlens run` made. Nothing is ever overwritten.
    """
    import shlex

    from memlens.cli.runs import open_run
    from memlens.exporters import export

    folder = export(open_run(run), to, out)
    files = [file for file in folder.rglob("*") if file.is_file()]
    size_bytes = sum(file.stat().st_size for file in files)
    from memlens.units import format_bytes

    click.echo(f"wrote {len(files)} files, {format_bytes(size_bytes)}, to {folder}")
    click.echo(f"open them with: {EXPORTERS[to].opens_with} {shlex.quote(str(folder))}")
