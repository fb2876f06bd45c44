"""Allocated memory over time as a stacked area, drawn with characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from memlens.report.ink import Ink, cells
from memlens.report.ticks import stride
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.answers import Timeline
    from memlens.palette import Series

__all__ = ["area_chart", "legend", "sample"]

AXIS_WIDTH = 12


def sample(timeline: Timeline, columns: int, start_ns: int, end_ns: int) -> list[int]:
    """For each of `columns` equal spans of time, the entry of the timeline that stands for it.

    That is the highest entry that holds at any time in the span, also one that began before it: so
    the peak is always in the picture, and a flat stretch keeps its level.

    Returns:
        Indices into the timeline; -1 where nothing has been recorded yet.
    """
    import numpy as np

    edges = np.linspace(0, end_ns - start_ns, columns + 1)
    since = timeline.time_ns - start_ns
    holding = np.searchsorted(since, edges[:-1], side="right") - 1
    # Several entries can carry the time of an edge: all of them belong to the span it opens.
    opening = np.searchsorted(since, edges[:-1], side="left")
    last = np.searchsorted(since, edges[1:], side="left")
    last[-1] = np.searchsorted(since, edges[-1], side="right")
    begins = np.maximum(np.minimum(holding, opening), 0)
    ends = np.maximum(last, holding + 1)
    return [
        begin + int(timeline.allocated_bytes[begin:end].argmax()) if end > begin else -1
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]


def area_chart(
    timeline: Timeline,
    series: Sequence[Series],
    ink: Ink,
    *,
    width: int,
    rows: int,
    start_ns: int,
    end_ns: int,
    marker_ns: int | None = None,
    marker: str = "peak",
) -> Text:
    """Draw the memory of a span of time, with step numbers below.

    Args:
        timeline: what to draw.
        series: the bands, in stacking order.
        ink: what the terminal can show.
        width: of the whole picture with its axis, in characters.
        rows: height of the area, in characters.
        start_ns: left edge.
        end_ns: right edge.
        marker_ns: moment to point at from above.
        marker: what to write there.
    """
    columns = width - AXIS_WIDTH
    indices = sample(timeline, columns, start_ns, end_ns)
    stacks = [
        [
            0 if at < 0 else sum(int(timeline.categories[member][at]) for member in each.members)
            for each in series
        ]
        for at in indices
    ]
    top = max((sum(stack) for stack in stacks), default=0)
    drawn = [cells(stack, top, rows) for stack in stacks]

    def column_of(time_ns: int) -> int:
        return min(columns - 1, (time_ns - start_ns) * columns // max(1, end_ns - start_ns))

    text = Text(no_wrap=True)
    if marker_ns is not None and start_ns <= marker_ns <= end_ns:
        text.append_text(_marker(column_of(marker_ns), columns, marker, ink))
    for row in reversed(range(rows)):
        text.append_text(_axis(row, rows, top, ink))
        for column in drawn:
            text.append_text(ink.column(column[row], series))
        text.append("\n")
    begun = [number for number, when in timeline.step_start_ns.items() if when <= start_ns]
    starts = {
        number: column_of(max(when, start_ns))
        for number, when in timeline.step_start_ns.items()
        # Of the steps that began before the picture, only the one that is still on.
        if (when > start_ns or number == max(begun)) and when < end_ns
    }
    text.append_text(_steps(starts, columns, ink))
    return text


def legend(series: Sequence[Series], ink: Ink, width: int) -> Text:
    """Which colour or letter is what; lines break between entries only."""
    text = Text()
    used = 0
    for each in series:
        length = 2 + len(each.label)
        if used and used + 3 + length > width:
            text.append("\n")
            used = 0
        elif used:
            text.append("   ")
            used += 3
        text.append_text(ink.swatch(each))
        text.append(f" {each.label}")
        used += length
    return text


def _marker(column: int, columns: int, words: str, ink: Ink) -> Text:
    arrow = "▼" if ink.blocks else "v"
    text = Text(" " * AXIS_WIDTH, style="bold")
    if column + len(words) + 2 <= columns:
        text.append(" " * column + f"{arrow} {words}\n")
    else:
        text.append(" " * max(0, column - len(words) - 1) + f"{words} {arrow}\n")
    return text


def _axis(row: int, rows: int, top: int, ink: Ink) -> Text:
    """The scale left of one row: the highest row carries the maximum, the middle one half of it."""
    size = {rows - 1: top, rows // 2 - 1: top // 2}.get(row)
    label = "" if size is None else format_bytes(size)
    line = ("┤" if size is not None else "│") if ink.blocks else "|"
    return Text(f"{label:>{AXIS_WIDTH - 2}} {line}", style="dim")


def _steps(starts: dict[int, int], columns: int, ink: Ink) -> Text:
    """The line under the area: a tick where a step begins, and as many numbers as there is room."""
    line, corner, tick = ("─", "└", "┬") if ink.blocks else ("-", "+", "+")
    ticks = [line] * columns
    labels = [" "] * columns
    room = len(str(max(starts, default=0))) + 2
    each = stride(len(starts) * room / columns)
    free_from = 0
    for number, column in sorted(starts.items()):
        if number % each and free_from:
            continue
        ticks[column] = tick
        words = f"step {number}" if free_from == 0 else str(number)
        if column >= free_from and column + len(words) <= columns:
            labels[column : column + len(words)] = words
            free_from = column + len(words) + 1
    text = Text(f"{'0 B':>{AXIS_WIDTH - 2}} {corner}" + "".join(ticks) + "\n", style="dim")
    text.append(" " * AXIS_WIDTH + "".join(labels).rstrip(), style="dim")
    return text
