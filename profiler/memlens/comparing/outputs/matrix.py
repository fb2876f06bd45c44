"""Optimizers times kinds of sharding, and the ranks of each: tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.catalogue.combinations import ShardingMode
from memlens.comparing.outputs.grids import Ran, right, rows_grids
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, RankResult, Result
    from memlens.palette import Series

__all__ = ["matrix_grid", "ranks_grids"]

_SHOWN_RANKS = 4
"""Of more, those with the highest and the lowest peak are shown."""


def matrix_grid(comparison: Comparison) -> Table | None:
    """The peak of every optimizer under every kind of sharding; None: there is but one kind, or none."""
    modes = list(dict.fromkeys(each.sharding for each in comparison.results if each.sharding))
    if len(modes) < 2:
        return None
    cells = {(each.optimizer, each.sharding): each for each in comparison.results}
    titles = [ShardingMode(each).title for each in modes]
    table = make_table(Column("optimizer", no_wrap=True), *map(right, titles))
    for optimizer in dict.fromkeys(each.optimizer for each in comparison.results):
        row = [_cell(cells.get((optimizer, mode)), comparison.baseline) for mode in modes]
        table.add_row(Text(plain(optimizer)), *row)
    return table


def _cell(result: Result | None, baseline: str) -> Text:
    if result is None:
        return Text("-", style="dim")
    if result.peak is None:
        return Text(result.status.value, style="dim")
    return Text(
        format_bytes(result.peak.allocated_bytes), style="bold" if result.name == baseline else ""
    )


def ranks_grids(ran: Ran, series: Sequence[Series], *, width: int) -> list[Table]:
    """What the peak of every rank is made of; none, where no variant has several ranks."""
    rows = [
        (f"{plain(result.name)} {_rank_text(result, each)}", each.peak)
        for result, _ in ran
        if len(result.ranks) > 1
        for each in _shown(result.ranks)
    ]
    if not rows:
        return []
    names, peaks = zip(*rows, strict=True)
    return rows_grids(peaks, names, series, width=width, head="rank")


def _rank_text(result: Result, rank: RankResult) -> str:
    worst = len({each.peak.allocated_bytes for each in result.ranks}) > 1
    is_worst = worst and rank.rank == result.worst_rank
    return f"{rank.rank} of {len(result.ranks)}" + (", worst" if is_worst else "")


def _shown(ranks: Sequence[RankResult]) -> Sequence[RankResult]:
    if len(ranks) <= _SHOWN_RANKS:
        return ranks
    ordered = sorted(ranks, key=lambda each: -each.peak.allocated_bytes)
    half = _SHOWN_RANKS // 2
    return [*ordered[:half], *ordered[-half:]]
