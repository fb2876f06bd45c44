"""The report for people, in a terminal, a pipe or a file."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.text import Text

from memlens.palette import Series, series_of
from memlens.report import tables
from memlens.report.all_ranks import AllRanks, view_ranks
from memlens.report.beside import beside_lines
from memlens.report.chart import area_chart, legend
from memlens.report.groups import alike_allocations, alike_modules
from memlens.report.ink import Ink
from memlens.report.oom.section import out_of_memory_lines
from memlens.report.ranks import difference_line, ranks_table, spread_line, total_line
from memlens.report.text import count, plain
from memlens.report.view import (
    RankView,
    ReportOptions,
    command_line,
    view_rank,
)
from memlens.units import format_bytes, format_duration_ns

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["make_console", "print_report"]

PIPED_WIDTH = 100
NARROWEST = 40
"""Below this there is no room for a table; lines are wrapped by the terminal instead."""
WIDEST = 140
"""Beyond this the eye loses the line from a name to its number."""

CHART_ROWS = 10
STEPS_IN_ONE_CHART = 12
"""With more steps than this, one of them is too narrow to show its shape."""


def make_console(stream: TextIO | None = None) -> Console:
    """A console that treats text as text: no markup, no emoji codes, no guessed colours."""
    stream = stream or sys.stdout
    if isinstance(stream, TextIOWrapper):
        # A report with a few question marks beats none where the encoding is ASCII.
        stream.reconfigure(errors="replace")
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = PIPED_WIDTH
    console = Console(
        file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False
    )
    console.width = max(NARROWEST, min(console.width, WIDEST))
    return console


def print_report(capture: Capture, options: ReportOptions, console: Console) -> None:
    """Print the whole report: all ranks compared, and one of them in detail.

    Raises:
        UsageError: the rank or step asked for was not recorded.
    """
    ranks = view_ranks(capture, options.rank)
    view = view_rank(ranks.highest, options)
    ink = Ink.of(console)
    series = series_of(options.rollup)
    _print_header(capture, ranks, console)
    for sentence in ranks.warnings:
        console.print(Text("! " + plain(sentence), style="bold yellow"))
    if lines := out_of_memory_lines(ranks.asked, capture.info.world_size, console.width):
        _section(console, "Out of memory")
        console.print(Text("\n".join(lines)))
    if view.rank.events == 0:
        console.print("\nNo allocation was recorded.")
        return
    _print_headline(capture, view, len(ranks.asked), console)
    _print_charts(view, series, ink, console)
    _print_categories(view, series, ink, options, console)
    if lines := beside_lines(view.rank, view.slack):
        _section(console, "Beside the blocks")
        console.print(Text("\n".join(lines)))
    _print_steps(view, series, ink, console)
    _print_details(view, series, ink, options.top, console)
    if not ranks.is_one:
        _print_ranks(ranks, series, ink, console)
    console.print()
    console.print(
        Text(
            "More: --step N or --rank N to look elsewhere, --rollup for the five published names, "
            f"--json for machines;\nin a browser: memlens view {plain(capture.info.path)}",
            style="dim",
        )
    )


def _print_ranks(ranks: AllRanks, series: tuple[Series, ...], ink: Ink, console: Console) -> None:
    compared, last = ranks.compared(series)
    _section(console, count(len(ranks.summaries), "rank"))
    console.print(ranks_table(ranks.summaries, compared, series, ink, width=console.width))
    if len(ranks.summaries) > 1:
        console.print(spread_line(compared, series))
    if difference := difference_line(compared, series):
        console.print(difference)
    if ranks.capture.launches > 1:
        console.print(f"Of the last of {ranks.capture.launches} starts of the job:")
    console.print(total_line(ranks.total(last)))


def _print_header(capture: Capture, ranks: AllRanks, console: Console) -> None:
    info = capture.info
    facts = [
        plain(info.source),
        count(info.world_size, "rank"),
        *map(plain, capture.ranks[0].sharding if capture.ranks else ()),
        f"torch {plain(info.torch_version)}" if info.torch_version else "torch version not known",
        count(ranks.events, "event"),
    ]
    title = Text(plain(info.name), style="bold")
    title.append("   " + " · ".join(facts), style="not bold dim")
    console.print(title)
    console.print(Text(f"$ {plain(command_line(info))}", style="dim"))


def _print_headline(capture: Capture, view: RankView, ranks: int, console: Console) -> None:
    moment = view.moment
    where = []
    if len(capture.ranks) > 1:
        where.append(f"rank {view.rank.rank}" + (" (the highest)" if ranks > 1 else ""))
    text = Text("\nPeak " if view.at_peak else f"\nPeak of step {moment.step} ")
    text.append(format_bytes(moment.allocated_bytes), style="bold")
    if not view.at_peak:
        text.append(f" (of the run: {format_bytes(view.peak.allocated_bytes)})")
    else:
        if view.peak.reserved_bytes is not None:
            text.append(f" ({format_bytes(view.peak.reserved_bytes)} reserved)")
        where.append(f"step {moment.step}")
    if moment.phase:
        where.append(moment.phase.value)
    if moment.module:
        where.append(f"in {plain(moment.module)}")
    where.append(f"{format_duration_ns(moment.elapsed_ns)} after the first event")
    text.append("   " + ", ".join(where))
    console.print(text)


def _print_charts(view: RankView, series: tuple[Series, ...], ink: Ink, console: Console) -> None:
    """The whole run; and the step of the moment by itself, when it is too narrow there."""
    timeline = view.timeline
    start_ns, end_ns = view.start_ns, int(timeline.time_ns[-1])
    if view.steps:
        end_ns = max(end_ns, view.steps[-1].end_ns)
    present = [
        each for each in series if any(timeline.categories[member].any() for member in each.members)
    ]
    zoom = [
        step
        for step in view.steps
        if step.step == view.moment.step and len(view.steps) > STEPS_IN_ONE_CHART
    ]
    _section(console, f"Allocated over time, {format_duration_ns(end_ns - start_ns)}")
    console.print(
        area_chart(
            timeline,
            present,
            ink,
            width=console.width,
            rows=CHART_ROWS // 2 + 1 if zoom else CHART_ROWS,
            start_ns=start_ns,
            end_ns=end_ns,
            marker_ns=view.moment.time_ns,
            marker="peak" if view.at_peak else f"peak of step {view.moment.step}",
        )
    )
    for step in zoom:
        duration = format_duration_ns(step.end_ns - step.start_ns)
        _section(console, f"Step {step.step}, {duration}")
        console.print(
            area_chart(
                # Thinned out over the whole run, a single step would be a few points.
                view.rank.timeline(),
                present,
                ink,
                width=console.width,
                rows=CHART_ROWS,
                start_ns=step.start_ns,
                end_ns=step.end_ns,
                marker_ns=view.moment.time_ns,
            )
        )
    console.print(legend(present, ink, console.width))


def _print_categories(
    view: RankView,
    series: tuple[Series, ...],
    ink: Ink,
    options: ReportOptions,
    console: Console,
) -> None:
    name = "at the peak" if view.at_peak else f"step {view.moment.step} peak"
    _section(console, "By the five published names" if options.rollup else "By category")
    console.print(tables.categories_table(view, series, ink, width=console.width, moment_name=name))
    if kinds := tables.weight_kinds_line(view):
        console.print(kinds)
    if any(view.inferred_bytes.values()):
        console.print(
            Text(
                "inferred: share concluded from when and where it was allocated and freed; "
                "the rest belongs to objects we know",
                style="dim",
            )
        )


def _print_steps(view: RankView, series: tuple[Series, ...], ink: Ink, console: Console) -> None:
    if not view.steps:
        console.print("\nNo complete training step was recorded.")
        return
    _section(console, f"Steps ({len(view.steps)})")
    if len(view.steps) > tables.MANY_STEPS:
        peaks = [step.peak_bytes for step in view.steps]
        line = Text.assemble(("peak of every step  ", "dim"))
        line.append_text(ink.sparkline(peaks, console.width - 21, series[0].colour))
        console.print(line)
    console.print(tables.steps_table(view, series, ink, width=console.width))


def _print_details(
    view: RankView,
    series: tuple[Series, ...],
    ink: Ink,
    top: int,
    console: Console,
) -> None:
    width = console.width
    if modules := alike_modules(view.modules):
        _section(console, f"Top modules ({len(view.modules):,})")
        console.print(tables.modules_table(view, modules[:top], series, ink, width=width))
    if blocks := alike_allocations(view.allocations):
        _section(console, f"Top allocations ({count(len(view.allocations), 'block')})")
        console.print(tables.allocations_table(blocks[:top], series, ink, width=width))
        notes = []
        if any(view.inferred_bytes.values()):
            notes.append(f"{tables.INFERRED_MARK} inferred, as above")
        counts = [group.count for group in modules[:top]] + [group.count for group in blocks[:top]]
        if max(counts) > 1:
            notes.append("alike ones are put together, * stands for the number of a layer")
        if notes:
            console.print(Text("; ".join(notes), style="dim"))
    if view.growth:
        _section(console, "Growth: these accumulate from step to step")
        console.print(tables.growth_table(view, series, width=width))
    elif len(view.steps) > 2:
        _section(console, "Growth")
        console.print("Nothing accumulates from step to step.")


def _section(console: Console, title: str) -> None:
    console.print()
    heading: RenderableType = Rule(Text(title, style="bold"), align="left", style="dim")
    console.print(heading)
