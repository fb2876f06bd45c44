"""From when to when blocks lived: the largest of a window, and how long all of them did."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import FOREVER
from memlens.palette import CATEGORY_SERIES
from memlens.web.opened import CATEGORY_KEYS, OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within
from memlens.web.views.timeline import window_of

__all__ = ["PARAMETERS", "lifetimes"]

Array = npt.NDArray[Any]

PARAMETERS = ("from", "to", "limit", "category")
MOST_BLOCKS = 2_000
_SERIES = [series.key for series in CATEGORY_SERIES]
"""Categories go out as positions in this list, that of `runs`."""


def lifetimes(rank: OpenedRank, asked: Parameters) -> Json:
    """Blocks that were alive at some time in the window."""
    low, high = asked.window(0, rank.total_ns)
    begin, end = window_of(rank, low, high)
    blocks = rank.blocks
    begun = int(np.searchsorted(blocks.first, end, side="left"))
    inside = blocks.last[:begun] >= begin
    category = asked.choice("category", CATEGORY_KEYS, None)
    if category is not None:
        inside &= rank.attribution.category[:begun] == CATEGORY_KEYS.index(category)
    rows = np.flatnonzero(inside)
    size = blocks.size_bytes[rows]
    limit = asked.whole("limit", 1_500, MOST_BLOCKS)
    if len(rows) > limit:
        largest = rows[np.argpartition(-size, limit - 1)[:limit]] if limit else rows[:0]
    else:
        largest = rows
    largest = largest[np.argsort(-blocks.size_bytes[largest], kind="stable")]
    answer: Json = {
        "from": low,
        "to": high,
        "count": len(rows),
        "size_bytes": int(size.sum()),
        "histogram": _histogram(rank, rows, size),
    }
    return within(lambda count: {**answer, **_blocks(rank, largest[:count])}, len(largest))


def _blocks(rank: OpenedRank, rows: Array) -> Json:
    rows = np.sort(rows)  # in the order in which they were allocated
    modules: dict[str, int] = {}
    names: dict[str, int] = {}
    found = []
    for row in rows.tolist():
        block = rank.rank.allocation(row)
        found.append(
            [
                row,
                rank.born(row),
                rank.freed(row),
                block.size_bytes,
                _SERIES.index(block.category.value),
                modules.setdefault(brief(block.module), len(modules)),
                names.setdefault(brief(block.name), len(names)),
            ]
        )
    return {
        "shown_bytes": int(rank.blocks.size_bytes[rows].sum()),
        "blocks": found,
        "modules": list(modules),
        "names": list(names),
    }


def _histogram(rank: OpenedRank, rows: Array, size: Array) -> list[list[int | None]]:
    """How many lived up to 1, 4, 16 … nanoseconds, and how many bytes; None: to the end."""
    free_ns = rank.blocks.free_ns[rows]
    ended = free_ns < FOREVER
    length = (free_ns - rank.blocks.alloc_ns[rows])[ended]
    bounds = 4 ** np.arange(31, dtype=np.int64)
    place = np.searchsorted(bounds, length, side="left")
    count = np.bincount(place, minlength=len(bounds))
    # Not with bincount, which adds weights up as floats: they hold whole bytes to 2**53 only.
    total = np.zeros(len(bounds), np.int64)
    np.add.at(total, place, size[ended])
    found: list[list[int | None]] = [
        [bound, many, held]
        for bound, many, held in zip(bounds.tolist(), count.tolist(), total.tolist(), strict=True)
        if many
    ]
    if rest := int(np.count_nonzero(~ended)):
        found.append([None, rest, int(size[~ended].sum())])
    return found
