"""A comparison for people, in a terminal, a pipe or a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.rule import Rule
from rich.text import Text

from memlens.comparing.outputs import grids
from memlens.comparing.outputs.cards import cards_grid, shortages
from memlens.comparing.outputs.matrix import matrix_grids, ranks_grids
from memlens.palette import series_of
from memlens.report.chart import legend
from memlens.report.ink import Ink
from memlens.report.text import count, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memlens.comparing.capacity import Capacity
    from memlens.comparing.results import Comparison, PeakResult, Result

__all__ = ["print_comparison"]

TIME_NOTE = "step time: median without the first, recorded by memlens all the while"
CARD_NOTE = (
    "reserved: what the allocator takes from the device; simulated, so without time and loss"
)
CAPACITY_NOTE = "by what was allocated; an allocator's slack and a device's context come on top"


def print_comparison(
    comparison: Comparison,
    console: Console,
    *,
    rollup: bool = False,
    capacities: Sequence[Capacity] = (),
) -> None:
    """Print peaks, what they are made of, time and loss, and what did not run.

    Args:
        comparison: what to print.
        console: where to; `memlens.report.terminal.make_console` makes one.
        rollup: show the five published names instead of every category.
        capacities: sizes of devices, to say which variants fit.
    """
    ink = Ink.of(console)
    ran = [(result, result.peak) for result in comparison.results if result.peak is not None]
    series = [
        each for each in series_of(rollup) if any(each.amount(peak.categories) for _, peak in ran)
    ]
    _print_header(comparison, console)
    if matrices := matrix_grids(comparison, width=console.width):
        _section(console, "Highest rank's peak")
        for grid in matrices:
            console.print(grid)
    _section(console, "Peak memory")
    console.print(grids.peaks_grid(comparison, series, ink, width=console.width))
    if series:
        console.print(legend(series, ink, console.width))
    for note in _footnotes(comparison):
        console.print(Text(note, style="dim"))
    if series:
        _section(console, "At the peak, " + ("by published name" if rollup else "by category"))
        for grid in grids.categories_grids(ran, series, ink, width=console.width):
            console.print(grid)
        if ranks := ranks_grids(ran, series, width=console.width):
            _section(console, "Each rank at its own peak")
            for grid in ranks:
                console.print(grid)
    if ran and comparison.simulated:
        _section(console, "On the card")
        console.print(cards_grid(comparison, ran, width=console.width))
        console.print(Text(CARD_NOTE, style="dim"))
        for line in shortages(comparison):
            console.print(Text(line, overflow="fold"))
    elif ran:
        _section(console, "Time and loss")
        console.print(grids.steps_grid(comparison, ran, width=console.width))
        console.print(Text(TIME_NOTE, style="dim"))
    if capacities and ran:
        _section(console, "Capacity")
        for capacity in capacities:
            _print_capacity(capacity, ran, console)
        console.print(Text(CAPACITY_NOTE, style="dim"))
    _print_sentences(
        console,
        "Failed or refused",
        [
            (result.name, f"{result.status.value}: {result.reason or 'no reason is known'}")
            for result in comparison.results
            if result.peak is None
        ],
    )
    names_of: dict[str, list[str]] = {}
    for result in comparison.results:
        for note in result.notes:
            names_of.setdefault(note, []).append(result.name)
    notes = [(", ".join(names), note) for note, names in names_of.items()]
    _print_sentences(console, "Notes", notes)


def _print_header(comparison: Comparison, console: Console) -> None:
    facts = [count(len(comparison.results), "variant"), plain(comparison.device)]
    if comparison.torch_version:
        facts.append(f"torch {plain(comparison.torch_version)}")
    title = Text(plain(comparison.job), style="bold")
    title.append("   " + " · ".join(facts), style="not bold dim")
    console.print(title)


def _footnotes(comparison: Comparison) -> list[str]:
    notes = []
    if any(result.reused for result in comparison.results):
        notes.append(f"{grids.REUSED_MARK} from an earlier call; --fresh runs it again")
    baseline = comparison.result(comparison.baseline)
    if baseline.peak is None and len(comparison.results) > 1:
        name = plain(baseline.name)
        notes.append(f"the baseline {name} has no peak, so differences are not known")
    return notes


def _print_capacity(
    capacity: Capacity, ran: Sequence[tuple[Result, PeakResult]], console: Console
) -> None:
    """Which variants stay below a capacity, and by how much the others do not."""
    fit = [plain(result.name) for result, peak in ran if capacity.fits(peak)]
    above = [
        f"{plain(result.name)} ({format_bytes(excess, signed=True)})"
        for result, peak in ran
        if (excess := peak.allocated_bytes - capacity.size_bytes) > 0
    ]
    console.print(Text(capacity.shown, style="bold"))
    for head, names in (("fit", fit), ("too large", above)):
        _print_items(console, f"  {head:<9}  ", names)


def _print_items(console: Console, head: str, items: Sequence[str]) -> None:
    """Print items with commas between them; lines break between items only, unless one is longer."""
    lines: list[str] = []
    for item in items:
        if lines and cell_len(f"{head}{lines[-1]}, {item},") <= console.width:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    for number, line in enumerate(lines):
        begin, end = (head if number == 0 else " " * len(head)), "," * (number < len(lines) - 1)
        console.print(Text(f"{begin}{line}{end}", overflow="fold"))


def _print_sentences(console: Console, title: str, items: Sequence[tuple[str, str]]) -> None:
    if not items:
        return
    _section(console, title)
    for name, sentence in items:
        text = Text(plain(name), style="bold")
        text.append(f"  {plain(sentence)}", style="not bold")
        _print_hanging(console, text, 4)


def _print_hanging(console: Console, text: Text, indent: int) -> None:
    """Print a text whose further lines are indented, so that what it begins with stands out."""
    first = text.wrap(console, console.width)[0]
    rest = Text(text.plain[len(first) :].lstrip()).wrap(console, console.width - indent)
    for line in [first, *(Text(" " * indent).append_text(line) for line in rest if line)]:
        line.rstrip()
        console.print(line)


def _section(console: Console, title: str) -> None:
    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
