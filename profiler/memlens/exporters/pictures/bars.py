"""What ranks hold at their peaks, as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memlens.palette import CATEGORY_SERIES, Series
from memlens.report.figure import FAINT, GREY, INK, draw_segment
from memlens.report.text import plain
from memlens.units import format_bytes

# Behind memlens.report.figure, which says what to install where matplotlib is missing.
from matplotlib.ticker import FuncFormatter, MaxNLocator  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from memlens.across.compare import RanksCompared
    from memlens.across.summary import RankSummary

__all__ = ["MOST_BARS", "bars_shown", "draw_bars", "draw_spread", "series_shown"]

MOST_BARS = 16
"""Of more ranks, three stand for all."""
NAME_COLUMNS = 40


def bars_shown(
    ranks: Sequence[RankSummary], compared: RanksCompared
) -> list[tuple[str, RankSummary]]:
    """Which ranks have a bar, and what it is called: all, or the highest, median and lowest one."""
    if len(ranks) <= MOST_BARS:
        return [(_name(each, ranks), each) for each in ranks]
    chosen = (
        ("highest", compared.highest),
        ("median", compared.median),
        ("lowest", compared.lowest),
    )
    return [(f"{word}: {_name(each, ranks)}", each) for word, each in chosen]


def _name(one: RankSummary, ranks: Sequence[RankSummary]) -> str:
    name = f"rank {one.rank}"
    if len({each.device for each in ranks}) > 1 or len(ranks) == 1:
        name += f", {plain(one.device)}"
    if len({each.launch for each in ranks}) > 1:
        name += f", start {one.launch + 1}"
    return name[:NAME_COLUMNS]


def series_shown(ranks: Sequence[RankSummary]) -> list[Series]:
    """The categories that any of the ranks holds at its peak."""
    return [
        each for each in CATEGORY_SERIES if any(each.amount(rank.peak.categories) for rank in ranks)
    ]


def draw_bars(
    axes: Axes, bars: Sequence[tuple[str, RankSummary]], rows: int, unit: tuple[str, int]
) -> list[tuple[Text, float]]:
    """Draw one bar below the other.

    Args:
        axes: where.
        bars: names, and ranks.
        rows: how many there are, with those that others draw below them.
        unit: of sizes.

    Returns:
        Labels within bars, each with the width that it has; see `keep_if_it_fits`.
    """
    unit_name, unit_bytes = unit
    highest = max(rank.peak_bytes for _, rank in bars)
    # Behind the longest bar there is room for its total.
    room = 1.2 if bars[0][1].peak.reserved_bytes is None else 1.32
    axes.set_xlim(0, (highest or 1) / unit_bytes * room)
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], color=INK, parse_math=False)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.tick_params(axis="x", colors=INK, length=3)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom")
    axes.spines["bottom"].set_color(FAINT)
    axes.set_xlabel(f"allocated, {unit_name}", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    title = "At the peak of each rank" if len(bars) > 1 else "At the peak"
    axes.set_title(title, loc="left", color=INK, fontsize=9.5, fontweight="bold")
    decimals = 0 if unit_bytes == 1 else 1 if highest >= 10 * unit_bytes else 2
    labels = []
    for row, (_, rank) in enumerate(bars):
        left = 0
        for series in CATEGORY_SERIES:
            if amount := series.amount(rank.peak.categories):
                number = f"{amount / unit_bytes:,.{decimals}f}"
                labels.append(
                    draw_segment(
                        axes, row, left / unit_bytes, amount / unit_bytes, series.colour, number
                    )
                )
                left += amount
        _beside(axes, left / unit_bytes, row, format_bytes(rank.peak_bytes), _reserved(rank))
    return labels


def _reserved(rank: RankSummary) -> str:
    size = rank.peak.reserved_bytes
    return "" if size is None else f"of {format_bytes(size)} reserved"


def draw_spread(
    axes: Axes,
    ranks: Sequence[RankSummary],
    compared: RanksCompared,
    row: int,
    unit: tuple[str, int],
) -> None:
    """Mark the peaks of all ranks, in a row below the bars."""
    peak = compared.peak
    values = sorted({each.peak_bytes for each in ranks})
    axes.set_yticks([*axes.get_yticks(), row])
    axes.set_yticklabels(
        [*(text.get_text() for text in axes.get_yticklabels()[:-1]), f"all {len(ranks):,} ranks"],
        color=INK,
        parse_math=False,
    )
    axes.vlines([value / unit[1] for value in values], row - 0.28, row + 0.28, color=INK, lw=0.8)
    spread = peak.highest_bytes - peak.lowest_bytes
    percent = f" ({100 * spread / peak.highest_bytes:.1f} %)" if peak.highest_bytes else ""
    _beside(
        axes,
        peak.highest_bytes / unit[1],
        row,
        f"spread {format_bytes(spread)}" if spread else "all alike",
        percent if spread else "",
    )


def _beside(axes: Axes, at: float, row: int, text: str, more: str) -> None:
    """A figure to the right of a bar, and a few faint words about it."""
    first = axes.annotate(
        text,
        (at, row),
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        color=INK,
        fontweight="bold",
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )
    if more:
        axes.annotate(
            more,
            (1, 0.5),
            xycoords=first,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=GREY,
            fontsize=8.5,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
