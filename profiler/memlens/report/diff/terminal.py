"""`memlens diff` for people, in a terminal, a pipe or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from memlens.palette import series_of
from memlens.report.diff import tables
from memlens.report.ink import Ink
from memlens.report.text import count, plain
from memlens.report.view import command_line
from memlens.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from memlens.analysis.diff import Diff
    from memlens.answers import Peak
    from memlens.palette import Series
    from memlens.report.diff.view import DiffView, Side
    from memlens.report.view import ReportOptions

__all__ = ["print_diff"]

_NOTHING = (
    "The two runs do not differ by a byte: same step peaks, categories, modules, allocation sites."
)


def print_diff(view: DiffView, options: ReportOptions, console: Console) -> None:
    """Print the whole diff: both runs, their peaks, and what they differ in."""
    found = view.diff
    series = series_of(options.rollup)
    ink = Ink.of(console)
    for side in (view.a, view.b):
        _print_side(side, console)
    for sentence in view.warnings:
        console.print(Text("! " + plain(sentence), style="bold yellow"))
    console.print()
    _print_peak("A", view.a, found.a_peak, found.size.a_bytes, found, console)
    _print_peak("B", view.b, found.b_peak, found.size.b_bytes, found, console)
    if found.identical:
        console.print("\n" + _NOTHING)
        return
    console.print(Text(_summary(found, series)))
    _section(console, "By the five published names" if options.rollup else "By category")
    console.print(tables.categories_table(found.categories, series, ink, width=console.width))
    if found.steps:
        _section(console, f"Peak of each step ({len(found.steps):,})")
        console.print(tables.steps_table(found.steps))
    _print_details(found, series, ink, options.top, console)


def _print_side(side: Side, console: Console) -> None:
    info = side.capture.info
    facts = [
        plain(info.source),
        count(info.world_size, "rank"),
        f"torch {plain(info.torch_version)}" if info.torch_version else "torch version not known",
    ]
    title = Text.assemble(f"{side.letter}  ", (plain(info.name), "bold"))
    title.append("   " + " · ".join(facts), style="dim")
    console.print(title)
    console.print(Text(f"   $ {plain(command_line(info))}", style="dim"))


def _print_peak(
    letter: str, side: Side, peak: Peak, size_bytes: int, found: Diff, console: Console
) -> None:
    of_what = letter if found.step is None else f"step {found.step} in {letter}"
    text = Text.assemble(f"Peak of {of_what} ", (f"{format_bytes(size_bytes):>11}", "bold"))
    where = [f"rank {side.rank.rank}"] if len(side.capture.ranks) > 1 else []
    if found.step is None:
        where += [f"step {peak.step}", peak.phase.value]
        where += [f"in {plain(peak.module)}"] if peak.module else []
    else:
        where.append(f"of the run: {format_bytes(peak.allocated_bytes)}")
    text.append("   " + ", ".join(where))
    console.print(text)


def _summary(found: Diff, series: Sequence[Series]) -> str:
    """One sentence: which run needs more, by how much, and in what above all."""
    size = found.size
    difference = size.difference_bytes
    if difference:
        share = f" ({tables.percent(size)})" if size.a_bytes and size.b_bytes else ""
        word = "more" if difference > 0 else "less"
        text = f"B needs {format_bytes(abs(difference))} {word}{share}"
    else:
        text = "Both need the same"
    changes = [(each.label, tables.of_series(each, found.categories)) for each in series]
    label, most = max(changes, key=lambda item: abs(item[1].difference_bytes))
    if not most.difference_bytes:
        return f"{text}; no category differs."
    signed = format_bytes(most.difference_bytes, signed=True)
    return f"{text}; the largest difference is {label}, {signed}."


def _print_details(
    found: Diff, series: Sequence[Series], ink: Ink, top: int, console: Console
) -> None:
    modules, sites = tables.alike_modules(found.modules), tables.alike_sites(found.sites)
    if modules:
        number = sum(group.count for group in modules)
        _section(console, f"By module ({number:,} of {len(found.modules):,} differ)")
        shown = modules[:top]
        console.print(tables.modules_table(shown, series, ink, width=console.width))
        notes = ["bars: the categories that differ"]
        if any(group.count > 1 for group in shown):
            notes.append("alike ones are put together, * stands for the number of a layer")
        console.print(Text("; ".join(notes), style="dim"))
    if sites:
        number = sum(group.count for group in sites)
        _section(console, f"By allocation site ({number:,} of {len(found.sites):,} differ)")
        console.print(tables.sites_table(sites[:top], series, ink, width=console.width))
        if not any(site.a_frame or site.b_frame for site in found.sites):
            console.print(
                Text("by name, as at least one of the runs was recorded without stacks", "dim")
            )


def _section(console: Console, title: str) -> None:
    console.print()
    console.rule(Text(title, style="bold"), align="left", style="dim")
