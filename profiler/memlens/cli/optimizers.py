"""`memlens optimizers`: the catalogue, one optimizer of it, or a chart of what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memlens.catalogue.row import Row
    from memlens.report.optimizers.view import OptimizerView

__all__ = ["command"]


@click.command(name="optimizers")
@click.argument("name", required=False)
@click.option("--measure", is_flag=True, help="Measure NAME here and now, in a fresh process.")
@click.option(
    "--chart",
    type=click.Path(path_type=Path),
    metavar="FILE.svg|.png",
    help="Draw what each costs per parameter, stacked.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16"]),
    help="The chart's: of the parameters.  [default: fp32]",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAMES",
    help="The chart's: these alone, with commas or several times; NAME+no-retain-grad, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(
    name: str | None,
    measure: bool,
    chart: Path | None,
    dtype: str | None,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the optimizers that memlens knows and what they cost, or tell about one: NAME.

    Figures are bytes per parameter, measured by memlens itself; NAME --measure repeats that.
    """
    from memlens.catalogue.table import CATALOGUE, find
    from memlens.report.optimizers.view import implementations_of, stored_view

    if name is None and measure:
        raise click.UsageError("--measure needs the NAME of an optimizer")
    if chart is None and (dtype or only):
        raise click.UsageError(f"{'--dtype' if dtype else '--only'} goes with --chart")
    if chart is not None:
        if name is not None or as_json:
            other = "NAME (it has --only)" if name is not None else "--json"
            raise click.UsageError(f"--chart does not go with {other}")
        _draw(chart, dtype or "fp32", only)
        return
    if name is None:
        views = [stored_view(row) for row in CATALOGUE.values()]
    else:
        row = find(name)
        first = _measure(row) if measure else stored_view(row)
        views = [first, *map(stored_view, implementations_of(row))]
    if as_json:
        import json

        from memlens.report.optimizers.payload import optimizers_payload

        click.echo(json.dumps(optimizers_payload(views), indent=2))
        return
    from memlens.report.terminal import make_console

    if name is None:
        from memlens.report.optimizers.table import print_catalogue

        print_catalogue(views, make_console())
    else:
        from memlens.report.optimizers.page import print_optimizer

        print_optimizer(views[0], views[1:], make_console())


def _draw(path: Path, dtype: str, only: tuple[str, ...]) -> None:
    from memlens.cli.compare import split_names
    from memlens.report.optimizers.chart import draw_optimizers

    number = draw_optimizers(path, dtype, split_names(only))
    click.echo(f"wrote {path}: {number} bars")


def _measure(row: Row) -> OptimizerView:
    """Measure a row in a fresh process, whose allocator remembers nothing.

    Raises:
        MissingDependencyError: its library is not installed.
        MemlensError: it could not be measured; the text is the last line of what the process said.
    """
    import json
    import subprocess
    import sys

    from memlens.catalogue.installed import missing_libraries
    from memlens.catalogue.measured import read_figures
    from memlens.errors import MemlensError, MissingDependencyError
    from memlens.report.optimizers.view import fresh_view

    for library in missing_libraries(row):
        raise MissingDependencyError(library, f"measure {row.name}", row.extra)
    click.echo(f"measuring {row.name} in a process of its own, some 10 to 60 s …", err=True)
    words = [sys.executable, "-m", "memlens.variants.measure", row.name]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("memlens: ") if lines else f"exit code {done.returncode}"
        raise MemlensError(f"could not measure {row.name}: {reason}")
    try:
        # The last line: libraries may greet on their standard output.
        found = json.loads(done.stdout.splitlines()[-1])
        figures = {dtype: read_figures(each) for dtype, each in found.items()}
    except (AttributeError, IndexError, KeyError, ValueError):
        raise MemlensError(f"could not measure {row.name}: its answer cannot be read") from None
    return fresh_view(row, figures)
