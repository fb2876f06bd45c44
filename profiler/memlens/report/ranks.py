"""How the ranks of a run compare: who is highest, by how much, and in what."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.palette import Series
from memlens.report.tables import make_table
from memlens.report.text import count, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlens.answers import Peak
    from memlens.capture import RankCapture
    from memlens.report.ink import Ink

__all__ = ["RankPeak", "ranks_table", "spread_line"]

MANY_RANKS = 12
"""Up to here, every rank has a row."""


@dataclass(frozen=True)
class RankPeak:
    """A rank and its peak, asked for once: with thousands of ranks each question costs a file."""

    rank: int
    device: str
    peak: Peak

    @classmethod
    def of(cls, rank: RankCapture) -> RankPeak:
        """Ask a rank."""
        return cls(rank.rank, rank.device, rank.peak())

    @property
    def peak_bytes(self) -> int:
        """Allocated bytes at the peak."""
        return self.peak.allocated_bytes


def ranks_table(
    ranks: Sequence[RankPeak], series: Sequence[Series], ink: Ink, *, width: int
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
    middle = median_low([each.peak_bytes for each in ranks])
    full = max(each.peak_bytes for each in ranks)
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
            f"step {each.peak.step}, {each.peak.phase.value}",
            style="bold" if each is by_peak[0] and each.peak_bytes > middle else "",
        )
    return table


def spread_line(ranks: Sequence[RankPeak], series: Sequence[Series]) -> str:
    """One sentence: how far apart the highest and the lowest rank are, and in what."""
    high = max(ranks, key=lambda each: each.peak_bytes)
    low = min(ranks, key=lambda each: each.peak_bytes)
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
