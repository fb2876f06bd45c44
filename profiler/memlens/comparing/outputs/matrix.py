"""Optimizers times kinds of sharding, and the ranks of each: tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.catalogue.combinations import ShardingMode
from memlens.comparing.outputs.grids import Ran, right, rows_grids
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, PeakResult, RankResult, Result
    from memlens.palette import Series

__all__ = ["matrix_grid", "ranks_grids"]

_SHOWN = 4
"""Of more ranks that differ, those with the highest and the lowest peak are shown."""


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
        (f"{plain(result.name)} {label}", peak)
        for result, _ in ran
        if len(result.ranks) > 1
        for label, peak in _shown(result.ranks)
    ]
    if not rows:
        return []
    names, peaks = zip(*rows, strict=True)
    return rows_grids(peaks, names, series, width=width, head="rank")


def _shown(ranks: Sequence[RankResult]) -> Iterator[tuple[str, PeakResult]]:
    """The ranks whose peaks are made of the same bytes are one row, the highest first."""
    alike: dict[tuple[int, ...], list[RankResult]] = {}
    for each in sorted(ranks, key=lambda each: (-each.peak.allocated_bytes, each.rank)):
        alike.setdefault(tuple(each.peak.categories.values()), []).append(each)
    groups = list(alike.values())
    if len(groups) > _SHOWN:
        groups = [*groups[: _SHOWN // 2], *groups[-_SHOWN // 2 :]]
    for number, group in enumerate(groups):
        highest = " (most)" if number == 0 and len(alike) > 1 else ""
        yield _numbers([each.rank for each in group]) + highest, group[0].peak


def _numbers(ranks: Sequence[int]) -> str:
    """`0`, `0-7`, or `0, 2, 5`."""
    first, last = ranks[0], ranks[-1]
    if len(ranks) > 1 and list(ranks) == list(range(first, last + 1)):
        return f"{first}-{last}"
    if len(ranks) > _SHOWN:
        return f"{first} and {len(ranks) - 1} more"
    return ", ".join(map(str, ranks))
