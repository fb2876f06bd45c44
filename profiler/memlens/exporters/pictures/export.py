"""A run as one picture, SVG or PNG: bars of the ranks' peaks, and the timeline below.

Every rank has a bar; of more than 16, the highest, the median and the lowest one have, and a row shows
where the peaks of all lie. The timeline is that of the highest rank; that of the lowest is beside it
where the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.exporters.pictures.bars import (
    MOST_BARS,
    bars_shown,
    draw_bars,
    draw_spread,
    series_shown,
)
from memlens.exporters.pictures.timeline import (
    STEP_LABELS,
    Reserved,
    draw_timeline,
    size_unit,
    time_unit,
)
from memlens.exporters.rank_history import reserved_of
from memlens.palette import CATEGORY_SERIES, Series
from memlens.report.all_ranks import AllRanks, view_ranks
from memlens.report.figure import (
    GREY,
    INK,
    draw_legend,
    figure_bytes,
    keep_if_it_fits,
    make_figure,
)
from memlens.report.text import plain, shorten
from memlens.report.view import command_line
from memlens.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from memlens.across.compare import RanksCompared
    from memlens.across.summary import RankSummary
    from memlens.answers import Timeline
    from memlens.capture import Capture

__all__ = ["draw_run", "export_png", "export_svg"]

TIMELINE_POINTS = 1_200
"""Some for each pixel's width on a page; more make an SVG large, and look the same."""
ALIKE = 0.98
"""Of ranks whose peaks are that close, one timeline stands for all."""
ROW_INCHES = 0.36
TIMELINE_INCHES = 3.0
COMMAND_LETTERS = 120


def export_svg(capture: Capture, path: Path) -> None:
    """Draw a run as an SVG file, which is dark where its reader is.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    path.write_bytes(draw_run(view_ranks(capture, None), "svg"))


def export_png(capture: Capture, path: Path) -> None:
    """Draw a run as a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    path.write_bytes(draw_run(view_ranks(capture, None), "png"))


def draw_run(ranks: AllRanks, kind: str) -> bytes:
    """The content of an SVG or PNG.

    Args:
        ranks: of the run; those with the highest and the lowest peak are asked for their timelines.
        kind: `svg` or `png`.
    """
    return figure_bytes(partial(_draw, _ask(ranks)), kind)


@dataclass(frozen=True)
class _Asked:
    """What the picture shows."""

    ranks: AllRanks
    compared: RanksCompared
    timelines: tuple[_Timeline, ...]


@dataclass(frozen=True)
class _Timeline:
    """One rank over time."""

    rank: RankSummary
    timeline: Timeline
    reserved: Reserved | None
    """None: its allocator takes nothing in advance."""
    top_bytes: int
    """The most that is drawn."""


def _ask(ranks: AllRanks) -> _Asked:
    compared, _ = ranks.compared(CATEGORY_SERIES)
    chosen = [compared.highest]
    if compared.lowest.peak_bytes < ALIKE * compared.highest.peak_bytes:
        chosen.append(compared.lowest)
    timelines = []
    for summary in chosen:
        key = (summary.rank, summary.device, summary.launch)
        rank = next(each for each in ranks.asked if (each.rank, each.device, each.launch) == key)
        reserved_peak = rank.reserved_peak_bytes
        timelines.append(
            _Timeline(
                summary,
                rank.timeline(max_points=TIMELINE_POINTS // len(chosen)),
                None if reserved_peak is None else reserved_of(rank),
                max(summary.peak_bytes, reserved_peak or 0),
            )
        )
        rank.release()
    return _Asked(ranks, compared, tuple(timelines))


def _draw(asked: _Asked) -> Figure:
    summaries = asked.ranks.summaries
    bars = bars_shown(summaries, asked.compared)
    rows = len(bars) + (len(summaries) > MOST_BARS)
    heights = [0.55 + ROW_INCHES * rows, TIMELINE_INCHES]
    figure = make_figure(sum(heights) + 1.5)
    grid = figure.add_gridspec(2, len(asked.timelines), height_ratios=heights)
    top = figure.add_subplot(grid[0, :])
    unit = size_unit(asked.compared.highest.peak_bytes)
    labels = draw_bars(top, bars, rows, unit)
    if len(summaries) > MOST_BARS:
        draw_spread(top, summaries, asked.compared, len(bars), unit)
    longest = max((each.timeline for each in asked.timelines), key=_lasts_ns)
    time = time_unit(longest)
    for column, each in enumerate(asked.timelines):
        axes = figure.add_subplot(grid[1, column])
        words = ("highest: ", "lowest: ") if len(asked.timelines) > 1 else ("",)
        draw_timeline(
            axes,
            each.timeline,
            each.rank.peak,
            title=f"Over time, {words[column]}rank {each.rank.rank}, {plain(each.rank.device)}",
            unit=unit,
            time=time,
            reserved=each.reserved,
            top_bytes=max(each.top_bytes for each in asked.timelines),
            ends=_lasts_ns(longest) / time.ns,
            step_labels=STEP_LABELS // len(asked.timelines),
        )
        if column:
            axes.set_ylabel("")
    _name(figure, asked)
    draw_legend(figure, _legend(asked))
    figure.draw_without_rendering()
    for label, size in labels:
        keep_if_it_fits(top, label, size)
    return figure


def _lasts_ns(timeline: Timeline) -> int:
    return int(timeline.time_ns[-1] - timeline.time_ns[0]) if len(timeline.time_ns) else 0


def _name(figure: Figure, asked: _Asked) -> None:
    """Title and command line."""
    info, highest = asked.ranks.capture.info, asked.compared.highest
    of_rank = f" on rank {highest.rank}" if len(asked.ranks.summaries) > 1 else ""
    figure.suptitle(
        f"{shorten(plain(info.name), 60)}: peak {format_bytes(highest.peak_bytes)}{of_rank}\n",
        x=0.012,
        ha="left",
        color=INK,
        fontsize=12,
        fontweight="bold",
        parse_math=False,
    )
    top = figure.get_figheight()
    figure.text(
        0.012,
        1 - 0.45 / top,
        shorten(plain(command_line(info)), COMMAND_LETTERS),
        color=GREY,
        fontsize=9,
        parse_math=False,
    )


def _legend(asked: _Asked) -> Sequence[Series]:
    """Categories at a peak or in a timeline."""
    at_peaks = series_shown(asked.ranks.summaries)
    return [
        series
        for series in CATEGORY_SERIES
        if series in at_peaks
        or any(
            each.timeline.categories[member].any()
            for each in asked.timelines
            for member in series.members
        )
    ]
