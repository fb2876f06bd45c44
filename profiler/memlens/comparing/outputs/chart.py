"""A comparison as a stacked bar chart, as SVG or PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlens.comparing.outputs.names import wrap_name
from memlens.disk.replace import replace_file
from memlens.palette import Series, series_of
from memlens.report.figure import (
    FAINT,
    GREY,
    INK,
    draw_legend,
    draw_segment,
    figure_bytes,
    file_kind,
    keep_if_it_fits,
    make_figure,
)
from memlens.report.text import plain, shorten
from memlens.units import format_bytes, parse_bytes

# Behind memlens.report.figure, which says what to install where matplotlib is missing.
from matplotlib.ticker import FuncFormatter, MaxNLocator  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from memlens.comparing.capacity import Capacity
    from memlens.comparing.results import Comparison, PeakResult, Result

__all__ = ["chart_bytes", "draw_chart"]

LIMIT = "#B22222"
_LIMIT_TEXT: dict[str, Any] = {
    "color": LIMIT,
    "fontsize": 9,
    "fontweight": "bold",
    "parse_math": False,
}

ROW_INCHES = 0.46
LINE_INCHES = 0.16
"""What a name of several lines adds for each further one."""
NAME_COLUMNS = 30
REASON_LETTERS = 100
LETTER_SHARE = 0.0105
"""Width of a letter above the bars, as a share of the axis, taken a little too large."""
LEVEL_POINTS = 13
"""From one row of capacities' names to the next."""
FAR = 1.6
"""A capacity of more than so many times the highest peak is named at the edge, not drawn: it would
leave no room for the bars."""


def draw_chart(
    comparison: Comparison,
    path: Path,
    *,
    rollup: bool = True,
    capacities: Sequence[Capacity] = (),
) -> None:
    """Write the chart; an earlier file of this name gives way.

    The same comparison gives the same SVG, byte for byte, with one version of matplotlib.

    Args:
        comparison: what to draw.
        path: ends with `.svg` or `.png`.
        rollup: draw the five published names instead of every category.
        capacities: each becomes a dashed line.

    Raises:
        UsageError: the path has another ending, or cannot be written.
    """
    kind = file_kind(path)
    replace_file(path, chart_bytes(comparison, kind, rollup=rollup, capacities=capacities))


def chart_bytes(
    comparison: Comparison, kind: str, *, rollup: bool, capacities: Sequence[Capacity] = ()
) -> bytes:
    """The content of an SVG or PNG."""
    return figure_bytes(lambda: _draw(comparison, series_of(rollup), capacities), kind)


def _draw(
    comparison: Comparison, series: Sequence[Series], capacities: Sequence[Capacity]
) -> Figure:
    results = comparison.results
    peaks = [result.peak for result in results if result.peak is not None]
    highest = max((peak.allocated_bytes for peak in peaks), default=0)
    unit_name, unit = _unit(highest)
    shown = [each for each in series if any(each.amount(peak.categories) for peak in peaks)]
    names = ["\n".join(wrap_name(plain(result.name), NAME_COLUMNS)) for result in results]
    further_lines = sum(max(0, name.count("\n") - 1) for name in names)
    height = (1.9 if peaks else 1.0) + ROW_INCHES * len(results) + LINE_INCHES * further_lines
    figure = make_figure(height)
    axes = figure.subplots()
    axes.set_ylim(len(results) - 0.45, -0.55)
    near = sorted(
        (each for each in capacities if each.size_bytes <= FAR * highest),
        key=lambda each: each.size_bytes,
    )
    # Behind the longest bar there is room for its total.
    right = max(highest * 1.24, *(each.size_bytes * 1.06 for each in near), 1)
    axes.set_xlim(0, right / unit)
    head_points = _capacities(axes, near, right, unit)
    _name_far(axes, [each for each in capacities if each not in near], head_points)
    _frame(axes, comparison, names, unit_name if peaks else "", head_points)
    _separate(axes, results)
    decimals = 0 if unit == 1 else 1 if highest >= 10 * unit else 2
    labels = [
        label
        for row, result in enumerate(results)
        for label in _row(axes, comparison, result, row, shown, unit, decimals)
    ]
    if shown:
        draw_legend(figure, shown)
    figure.draw_without_rendering()
    for label, size in labels:
        keep_if_it_fits(axes, label, size)
    return figure


def _unit(size_bytes: int) -> tuple[str, int]:
    """The unit in which `format_bytes` writes a size, and its bytes: one for the whole axis."""
    name = format_bytes(size_bytes).rpartition(" ")[2]
    return name, parse_bytes(f"1{name}")


def _frame(
    axes: Axes, comparison: Comparison, names: Sequence[str], unit_name: str, head_points: int
) -> None:
    """Names, axis, title; `head_points` is how far above the bars the title has to stay."""
    axes.set_yticks(range(len(names)), names, color=INK, parse_math=False, fontsize=9.5)
    for tick, result in zip(axes.get_yticklabels(), comparison.results, strict=True):
        if result.name == comparison.baseline:
            tick.set_fontweight("bold")
        if result.peak is None:
            tick.set_color(GREY)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.tick_params(axis="x", colors=INK, length=3)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom" and bool(unit_name))
    axes.spines["bottom"].set_color(FAINT)
    title = "Memory at the peak"
    if any(len(result.ranks) > 1 for result in comparison.results):
        title += " of the rank that needs most"
    axes.set_title(
        f"{title}, {comparison.device}" if comparison.simulated else title,
        loc="left",
        color=INK,
        fontsize=12,
        fontweight="bold",
        pad=head_points + 20,
    )
    axes.annotate(
        shorten(plain(comparison.job), 110),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, head_points + 7),
        textcoords="offset points",
        color=GREY,
        fontsize=9,
        parse_math=False,
    )
    if not unit_name:
        axes.set_xticks([])
        return
    axes.set_xlabel(f"allocated, {unit_name}", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _separate(axes: Axes, results: Sequence[Result]) -> None:
    """A line between kinds of sharding."""
    for row in range(1, len(results)):
        if results[row].sharding != results[row - 1].sharding:
            axes.axhline(row - 0.5, color=GREY, linewidth=0.6, zorder=0.5)


def _row(
    axes: Axes,
    comparison: Comparison,
    result: Result,
    row: int,
    series: Sequence[Series],
    unit: int,
    decimals: int,
) -> list[tuple[Text, float]]:
    """One variant. Returns the labels within its bar, each with the width that it has."""
    if result.peak is None:
        reason = f"{result.status.value}: {result.reason or 'no reason is known'}"
        lines = textwrap.wrap(plain(reason), REASON_LETTERS, max_lines=2, placeholder=" …")
        _beside(axes, 0, row, "\n".join(lines), 6, color=GREY, fontsize=8.5, style="italic")
        return []
    labels = []
    left = 0
    for each in series:
        amount = each.amount(result.peak.categories)
        if not amount:
            continue
        number = f"{amount / unit:,.{decimals}f}"
        labels.append(draw_segment(axes, row, left / unit, amount / unit, each.colour, number))
        left += amount
    total = _beside(
        axes,
        left / unit,
        row,
        format_bytes(result.peak.allocated_bytes),
        5,
        color=INK,
        fontweight="bold",
        zorder=4,
    )
    if words := _against(comparison, result, result.peak):
        axes.annotate(
            words,
            (1, 0.5),
            xycoords=total,
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
            fontsize=8.5,
            zorder=4,
        )
    return labels


def _against(comparison: Comparison, result: Result, peak: PeakResult) -> str:
    if result.name == comparison.baseline:
        return "baseline" if len(comparison.results) > 1 else ""
    difference = comparison.difference(result)
    if difference is None:
        return ""
    return f"{difference.peak_percent:+.1f} %" if difference.peak_bytes else "="


def _beside(axes: Axes, at: float, row: int, text: str, points: int, **looks: Any) -> Any:
    return axes.annotate(
        text,
        (at, row),
        xytext=(points, 0),
        textcoords="offset points",
        va="center_baseline",
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        **looks,
    )


def _capacities(axes: Axes, capacities: Sequence[Capacity], right: float, unit: int) -> int:
    """Dashed lines with their names above the bars, in several rows where they would overlap.

    Returns:
        How high the names reach above the bars, in points.
    """
    ends: list[float] = []
    for capacity in capacities:
        share = capacity.size_bytes / right
        length = LETTER_SHARE * len(capacity.shown)
        # Above its line, or beside it at either end of the axis.
        side = "left" if share < length / 2 else "right" if share > 1 - length / 2 else "center"
        start = share - {"left": 0, "center": length / 2, "right": length}[side]
        level = next((at for at, end in enumerate(ends) if end < start), len(ends))
        ends[level : level + 1] = [start + length]
        points = 4 + LEVEL_POINTS * level
        at = capacity.size_bytes / unit
        # Above the bars, below the numbers.
        axes.axvline(at, color=LIMIT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
        axes.annotate(
            capacity.shown,
            (share, 1),
            xycoords="axes fraction",
            xytext=(0, points),
            textcoords="offset points",
            ha=side,
            **_LIMIT_TEXT,
        )
    return 4 + LEVEL_POINTS * len(ends)


def _name_far(axes: Axes, capacities: Sequence[Capacity], head_points: int) -> None:
    """Say at the edge what lies far outside."""
    if capacities:
        axes.annotate(
            ", ".join(each.shown for each in capacities) + " →",
            (1, 1),
            xycoords="axes fraction",
            xytext=(0, head_points + 7),
            textcoords="offset points",
            ha="right",
            **_LIMIT_TEXT,
        )
