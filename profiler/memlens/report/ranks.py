"""How the ranks of a run compare: who is highest, by how much, and in what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.across.ending import End
from memlens.palette import Series
from memlens.report.tables import make_table
from memlens.report.text import count, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlens.across.compare import Difference, RanksCompared
    from memlens.across.summary import RankSummary
    from memlens.report.all_ranks import Total
    from memlens.report.ink import Ink

__all__ = ["difference_line", "ranks_table", "spread_line", "total_line"]

MANY_RANKS = 12
"""Up to here, every rank has a row."""

_ENDED = {End.CLOSED: "", End.RAISED: "; failed", End.DIED: "; died", End.RUNNING: "; running"}


def ranks_table(
    ranks: Sequence[RankSummary],
    compared: RanksCompared,
    series: Sequence[Series],
    ink: Ink,
    *,
    width: int,
) -> Table:
    """Every rank's peak; of many ranks, the highest and the lowest ones."""
    bar_width = max(8, min(40, width - 64))
    table = make_table(
        Column("rank", justify="right", no_wrap=True),
        Column("device", no_wrap=True),
        Column("peak", justify="right", no_wrap=True),
        Column("", width=bar_width),
        Column("from median", justify="right", no_wrap=True),
        Column("when", no_wrap=True),
    )
    middle, full = compared.peak.median_bytes, compared.peak.highest_bytes
    by_peak = sorted(ranks, key=lambda each: -each.peak_bytes)
    skipped = len(ranks) - MANY_RANKS
    shown = sorted(ranks, key=lambda each: (each.rank, each.device))
    if skipped > 0:
        shown = by_peak[: MANY_RANKS - 4] + by_peak[-4:]
    for row, each in enumerate(shown):
        if skipped > 0 and row == MANY_RANKS - 4:
            table.add_row("", "", "", Text(f"… {count(skipped, 'rank')}", style="dim"), "", "")
        table.add_row(
            str(each.rank),
            plain(each.device),
            format_bytes(each.peak_bytes),
            ink.bar(
                [part.amount(each.peak.categories) for part in series], full, bar_width, series
            ),
            "="
            if each.peak_bytes == middle
            else format_bytes(each.peak_bytes - middle, signed=True),
            f"step {each.peak.step}, {each.peak.phase.value}{_ENDED[each.end.how]}",
            style="bold" if each is by_peak[0] and each.peak_bytes > middle else "",
        )
    return table


def spread_line(compared: RanksCompared, series: Sequence[Series]) -> str:
    """One sentence: how far apart the highest and the lowest rank are, and in what."""
    high, low = compared.highest, compared.lowest
    spread = high.peak_bytes - low.peak_bytes
    if spread == 0:
        return "All ranks have the same peak."
    share = 100 * spread / high.peak_bytes
    most = max(
        series,
        key=lambda each: each.amount(high.peak.categories) - each.amount(low.peak.categories),
    )
    difference = most.amount(high.peak.categories) - most.amount(low.peak.categories)
    return (
        f"Spread {format_bytes(spread)} ({share:.1f} % of the highest): rank {high.rank} is the "
        f"highest, rank {low.rank} the lowest; the largest difference is {most.label}, "
        f"{format_bytes(difference, signed=True)}."
    )


def difference_line(compared: RanksCompared, series: Sequence[Series]) -> str:
    """One sentence: why the highest rank is higher than the median one; empty if it is not."""
    category, module = compared.category, compared.module
    if category is None:
        return ""
    high, middle = compared.highest, compared.median
    labels = {each.key: each.label for each in series}
    text = (
        f"Rank {high.rank} is {format_bytes(compared.difference_bytes)} above the median rank "
        f"({middle.rank}): {_part(category, compared)} is {labels[category.name]}, "
        f"{format_bytes(category.size_bytes, signed=True)}"
    )
    if module is not None:
        name = f"in {plain(module.name)}" if module.name else "outside of modules"
        text += (
            f", and {_part(module, compared)} {name}, "
            f"{format_bytes(module.size_bytes, signed=True)}"
        )
        if module.category is not None and module.category != category.name:
            text += f" ({labels[module.category]})"
    if (high.peak.phase, high.peak.step) != (middle.peak.phase, middle.peak.step):
        text += (
            f"; it peaks in step {high.peak.step}, {high.peak.phase.value}, and the other in step "
            f"{middle.peak.step}, {middle.peak.phase.value}"
        )
    return text + "."


def _part(of: Difference, compared: RanksCompared) -> str:
    """How much of the whole difference one is."""
    is_most = 2 * of.size_bytes > compared.difference_bytes
    return "most of it" if is_most else "the largest part of it"


def total_line(total: Total) -> str:
    """One sentence: what the ranks need together, and of how many that is."""
    size = format_bytes(total.size_bytes)
    if not total.why_partial:
        return f"All {count(total.ranks, 'rank')} together: {size}, each at its own peak."
    return (
        f"{total.ranks:,} of {count(total.world_size, 'rank')} together: {size}, each at its own peak. "
        f"That is not the whole job: {'; '.join(total.why_partial)}."
    )
