"""Optimizers times kinds of sharding, and the ranks of each: tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from memlens.catalogue.combinations import ShardingMode
from memlens.comparing.outputs.grids import (
    BYTES_WIDTH,
    GAP,
    SHORT_NAME,
    Ran,
    name_cell,
    names_width,
    right,
    rows_grids,
)
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, PeakResult, RankResult, Result
    from memlens.palette import Series

__all__ = ["matrix_grids", "ranks_grids"]

_SHOWN = 4
"""Of more ranks that differ, those with the highest and the lowest peak are shown."""


def matrix_grids(comparison: Comparison, *, width: int) -> list[Table]:
    """The peak of every optimizer under every kind of sharding; nothing, where there are no two kinds.

    Kinds that do not fit into one table are in further ones.
    """
    modes = list(dict.fromkeys(each.sharding for each in comparison.results if each.sharding))
    if len(modes) < 2:
        return []
    optimizers = list(dict.fromkeys(each.optimizer for each in comparison.results))
    name_width = names_width([plain(each) for each in optimizers], max(SHORT_NAME, width // 3))
    per_table = max(1, (width - max(name_width, len("optimizer"))) // (GAP + BYTES_WIDTH))
    return [
        _matrix(comparison, optimizers, modes[start : start + per_table], name_width)
        for start in range(0, len(modes), per_table)
    ]


def _matrix(
    comparison: Comparison, optimizers: Sequence[str], modes: Sequence[str], name_width: int
) -> Table:
    cells = {(each.optimizer, each.sharding): each for each in comparison.results}
    titles = [ShardingMode(each).label for each in modes]
    table = make_table(Column("optimizer", no_wrap=True), *map(right, titles))
    for optimizer in optimizers:
        row = [_cell(cells.get((optimizer, mode)), comparison.baseline) for mode in modes]
        table.add_row(name_cell(plain(optimizer), name_width), *row)
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
