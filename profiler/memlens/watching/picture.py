"""What the live view shows: a few lines, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_low

from rich.cells import cell_len
from rich.text import Text

from memlens.events import Category
from memlens.palette import CATEGORY_SERIES
from memlens.report.ink import Ink
from memlens.report.text import plain
from memlens.units import format_bytes
from memlens.watching.ranks import RankView

__all__ = ["draw"]

FIRST_RANKS = 4
"""So many have a line each, and the highest one if it is none of them."""
_NAME_WIDTH = 9
_SIZE_WIDTH = 11


def draw(views: Sequence[RankView], ink: Ink, width: int) -> list[Text]:
    """The lines.

    Args:
        views: at least one rank.
        ink: what the terminal can show.
        width: of the terminal, in characters.
    """
    highest = max(views, key=lambda view: view.peak_bytes)
    lines = [_head(views, ink, width)]
    if len(views) == 1:
        lines += _one(views[0], ink, width)
    else:
        shown = list(views[:FIRST_RANKS])
        if highest not in shown:
            shown.append(highest)
        lines += [_row(view, highest, ink, width) for view in shown]
        lines.append(_spread(views, highest))
    lines.append(_legend(_at_peak(highest), ink, width))
    for line in lines:
        line.truncate(width - 1, overflow="ellipsis" if ink.blocks else "crop")
    return lines


def _at_peak(view: RankView) -> Mapping[Category, int]:
    """Categories at the peak of the last step, or at the highest moment before the first has ended."""
    step = view.state.step
    return step.categories if step is not None else view.state.peak.categories


def _head(views: Sequence[RankView], ink: Ink, width: int) -> Text:
    """A rule with where the job is."""
    steps = sorted({view.step for view in views})
    where = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    if len(views) == 1:
        now = views[0].state.now
        where = f"{where}, {now.phase.value} {plain(now.module)}".rstrip()
    rule = "─" if ink.blocks else "-"
    text = Text(f"{rule * 2} memlens {rule} ", style="dim")
    text.append(where, style="not dim bold")
    text.append(" ")
    text.append(rule * max(0, width - 1 - cell_len(text.plain)))
    return text


def _one(view: RankView, ink: Ink, width: int) -> list[Text]:
    """One rank: what it holds now, the last step's peak, and the peaks of all steps."""
    state = view.state
    full = state.peak.allocated_bytes
    length = max(10, width - _NAME_WIDTH - _SIZE_WIDTH - 3)
    now = _line("now", state.now.allocated_bytes)
    now.append_text(_bar(state.now.categories, full, length, ink))
    lines = [now]
    if state.step is not None:
        peak = _line("step peak", state.step.peak_bytes)
        peak.append_text(_bar(state.step.categories, full, length, ink))
        lines.append(peak)
    highest = _line("highest", full)
    facts = (
        f"in step {state.peak.step}, {state.peak.phase.value} {plain(state.peak.module)}".rstrip()
    )
    if state.now.reserved_bytes is not None:
        facts += f"; reserved {format_bytes(state.now.reserved_bytes)}"
    highest.append(facts)
    lines.append(highest)
    if len(state.trend) > 1 and ink.blocks:
        first, last = state.trend[0][0], state.trend[-1][0]
        text = f" steps {first} to {last}"
        trend = Text(f"{'trend':<{_NAME_WIDTH}} {'':>{_SIZE_WIDTH}} ")
        trend.append_text(_trend(view, length - len(text), ink))
        trend.append(text, style="dim")
        lines.append(trend)
    return lines


def _line(name: str, size_bytes: int) -> Text:
    text = Text(f"{name:<{_NAME_WIDTH}} ")
    text.append(f"{format_bytes(size_bytes):>{_SIZE_WIDTH}} ", style="bold")
    return text


def _bar(categories: Mapping[Category, int], full: int, length: int, ink: Ink) -> Text:
    amounts = [series.amount(categories) for series in CATEGORY_SERIES]
    return ink.bar(amounts, full, length, CATEGORY_SERIES)


def _row(view: RankView, highest: RankView, ink: Ink, width: int) -> Text:
    """One rank of several: what it holds now, its trend and its peak."""
    state = view.state
    text = _line(f"rank {view.rank}", state.now.allocated_bytes)
    trend = min(20, max(0, (width - 70) // 2))
    length = max(10, width - cell_len(text.plain) - trend - 24)
    bar = _bar(state.now.categories, highest.peak_bytes, length, ink)
    bar.pad_right(length - cell_len(bar.plain))
    text.append_text(bar)
    spark = _trend(view, trend, ink) if trend > 4 else Text()
    spark.pad_right(trend - cell_len(spark.plain))
    text.append_text(spark)
    text.append(" peak ")
    style = "bold" if view is highest else ""
    text.append(f"{format_bytes(view.peak_bytes):>{_SIZE_WIDTH}}", style=style)
    return text


def _trend(view: RankView, length: int, ink: Ink) -> Text:
    """Peaks of the steps, never quite as high as the line: rows would melt into one."""
    spark = ink.sparkline([peak for _, peak in view.state.trend], length, "dim")
    return Text(spark.plain.replace("█", "▇"), style="dim")


def _spread(views: Sequence[RankView], highest: RankView) -> Text:
    peaks = [view.peak_bytes for view in views]
    return Text(
        f"{len(views)} ranks: peaks {format_bytes(min(peaks))} to {format_bytes(max(peaks))}, "
        f"median {format_bytes(median_low(peaks))}; rank {highest.rank} is the highest"
    )


def _legend(categories: Mapping[Category, int], ink: Ink, width: int) -> Text:
    """What the colours mean, with sizes: the largest, as many as there is room for."""
    parts = [(series.amount(categories), series) for series in CATEGORY_SERIES]
    chosen: dict[str, Text] = {}
    room = width - 1
    for size_bytes, series in sorted(parts, key=lambda part: -part[0]):
        part = Text()
        part.append_text(ink.swatch(series))
        part.append(f" {series.label} {format_bytes(size_bytes)}  ")
        room -= cell_len(part.plain)
        if not size_bytes or room < -2:
            break
        chosen[series.key] = part
    return Text().join(chosen[series.key] for series in CATEGORY_SERIES if series.key in chosen)
