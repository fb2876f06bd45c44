"""`memlens export RUN --to TOOL`."""

from __future__ import annotations

from pathlib import Path

import click

from memlens.exporters import EXPORTERS

__all__ = ["command"]


class _ListsTargets(click.Command):
    """A command whose help has a line for each exporter."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Targets"):
            formatter.write_dl([(name, each.text) for name, each in EXPORTERS.items()])


@click.command(name="export", cls=_ListsTargets)
@click.argument("run")
@click.option(
    "--to",
    type=click.Choice(list(EXPORTERS)),
    metavar="TARGET",
    required=True,
    help="For which tool; see below.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File or folder to make.  [default: one in RUN]",
)
def command(run: str, to: str, out: Path | None) -> None:
    """Write a run for another tool to show.

    RUN is the folder that `memlens run` made, or with --to tensorboard one of `memlens compare`.
    Nothing is ever overwritten.
    """
    import shlex

    from memlens.cli.runs import open_run
    from memlens.comparing.read import is_comparison
    from memlens.exporters import export
    from memlens.units import format_bytes

    if is_comparison(Path(run)):
        result = _export_comparison(Path(run), to, out)
    else:
        result = export(open_run(run), to, out)
    if result.is_dir():
        files = [file for file in result.rglob("*") if file.is_file()]
        size_bytes = sum(file.stat().st_size for file in files)
        click.echo(f"wrote {len(files)} files, {format_bytes(size_bytes)}, to {result}")
    else:
        click.echo(f"wrote {format_bytes(result.stat().st_size)} to {result}")
    opens_with = EXPORTERS[to].opens_with.format(path=shlex.quote(str(result)))
    click.echo(f"open with: {opens_with}")


def _export_comparison(folder: Path, to: str, out: Path | None) -> Path:
    from memlens.comparing.read import read_comparison
    from memlens.errors import OutputExistsError, UsageError

    comparison = read_comparison(folder)
    if to != "tensorboard":
        there = [each.run for each in comparison.results if each.run]
        raise UsageError(
            f"{folder} is a comparison: its chart.svg, chart.png and comparison.csv are there already, "
            f"and only tensorboard can be exported; of one variant name the run: {', '.join(there)}"
        )
    from memlens.comparing.outputs.tensorboard import write_tensorboard

    result = out if out is not None else folder / to
    if result.exists() and (not result.is_dir() or any(result.iterdir())):
        raise OutputExistsError(
            f"{result} is already there and is never overwritten; "
            "remove it, or choose another with --out"
        )
    write_tensorboard(comparison, result)
    return result
