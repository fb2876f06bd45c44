"""The catalogue of optimizers as a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from memlens.catalogue.measured import conditions
from memlens.report.optimizers.view import OptimizerView, number, plain_of
from memlens.report.tables import make_table

__all__ = ["print_catalogue"]

EXPECTED_MARK = "~"
LIMIT_MARK = "!"

NARROWEST = 48
"""Below this width, only the state is shown."""
NARROW = 80
"""Below this width, only the figures are shown."""
WIDE = 96
"""From this width on, libraries are named."""

LIBRARY_WIDTH = 24


def print_catalogue(views: Sequence[OptimizerView], console: Console) -> None:
    """Print all optimizers, by family; implementations stand below the plain ones."""
    plain = [view for view in views if plain_of(view.row) is None]
    title = Text(f"{len(plain)} optimizers", style="bold")
    title.append("   bytes of state per parameter", style="not bold")
    console.print(title)
    console.print()
    console.print(_table(views, console.width))
    console.print()
    for note in _notes(views, console.width):
        console.print(Text(note, style="dim"))


def _table(views: Sequence[OptimizerView], width: int) -> Table:
    figures = [
        Column("optimizer", no_wrap=True),
        # Not justified to the right, which would take the spaces behind a number away.
        Column(" state\n  fp32", no_wrap=True),
        Column(" state\n  bf16", no_wrap=True),
        *([Column("step()\ncopies", no_wrap=True)] if width >= NARROWEST else []),
    ]
    library = [Column("library", max_width=LIBRARY_WIDTH)] if width >= WIDE else []
    marks = [
        Column(head, justify="center", no_wrap=True)
        for head in ("here", "CPU", "grads\ngo", "ZeRO", "FSDP")
    ]
    table = make_table(*figures, *(library + marks if width >= NARROW else []))
    families = list(dict.fromkeys(view.row.family for view in views))
    for family in families:
        table.add_row(Text(family, style="bold"))
        for view in views:
            if view.row.family != family:
                continue
            cells = [_name(view), *_figures(view, width)]
            if width >= WIDE:
                cells.append(Text(view.home, style="" if not view.missing else "yellow"))
            if width >= NARROW:
                cells += _marks(view)
            table.add_row(*cells)
    return table


def _name(view: OptimizerView) -> Text:
    if plain_of(view.row) is not None:
        return Text(f"   {view.row.name}", style="dim")
    return Text(f" {view.row.name}")


def _figures(view: OptimizerView, width: int) -> list[Text]:
    cells = []
    for dtype in ("fp32", "bf16"):
        text = number(view.state("matrix", dtype), whole=2)
        if dtype not in view.figures:
            shown = text.lstrip()
            text = f"{EXPECTED_MARK}{shown}".rjust(len(text))
        cells.append(Text(text))
    figures = view.figures.get("fp32")
    if width >= NARROWEST:
        copies = figures and number(figures.temporary / figures.weight, whole=2)
        cells.append(Text(copies or " ?"))
    return cells


def _marks(view: OptimizerView) -> list[Text]:
    row = view.row
    return [
        Text("no", style="yellow") if view.missing else Text("yes"),
        Text("no", style="yellow") if not row.runs_on_cpu else _limited(row.cpu),
        Text("always") if row.always_in_backward else Text("yes") if row.in_backward else _no(),
        Text("no", style="yellow") if view.refused_under_zero else _limited(row.zero),
        _limited(row.fsdp) if row.runs_under_fsdp else Text("no", style="yellow"),
    ]


def _limited(limit: str) -> Text:
    return Text(LIMIT_MARK, style="yellow") if limit else Text("yes")


def _no() -> Text:
    return Text("-", style="dim")


def _notes(views: Sequence[OptimizerView], width: int) -> list[str]:
    notes = [
        f"state: of a matrix of 1024 x 1024, fp32 or bf16 parameters, {conditions()}"
        + (
            f"; {EXPECTED_MARK} from the library's layout, not measured"
            if any(len(view.figures) < 2 for view in views)
            else ""
        ),
    ]
    if width >= NARROWEST:
        notes.append(
            "step() copies: what step() holds besides, in copies of the parameters, of eight layers in "
            "fp32; a for-loop's are copies of a layer, an eighth each"
        )
    if width >= NARROW:
        notes += [
            "here: its libraries are installed;  CPU: it runs there;  grads go: it can update within "
            "backward (NAME+no-retain-grad), so that no gradients are kept",
            f"ZeRO, FSDP: yes, no limit is known; {LIMIT_MARK} with limits; no: it is refused",
        ]
    notes.append(
        "More: memlens optimizers NAME; --chart FILE.svg draws the memory of each; --json for programs"
    )
    return notes
