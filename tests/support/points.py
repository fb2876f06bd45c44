"""What a rank holds at the points that `tests.planning.sharded_job` marks."""

from __future__ import annotations

from collections import Counter

import numpy as np

from memlens.capture import RankCapture
from memlens.events import Category
from memlens.rank import CATEGORIES

__all__ = ["HELD", "held_at"]

HELD = (
    Category.WEIGHT,
    Category.MASTER_WEIGHT,
    Category.GRADIENT,
    Category.OPTIMIZER_STATE,
    Category.COMMUNICATION,
)
_HOST_BYTES = 8
"""A step count of an optimizer is on the host, and so is everything else without a device."""


def held_at(rank: RankCapture, start_bytes: int, point_bytes: int) -> dict[Category, int]:
    """Bytes by category, as they were requested, of what was made from one point to another.

    A point that is passed several times counts at the last time. Step counts are left out.

    Args:
        rank: has recorded the job.
        start_bytes: size of the first point's block.
        point_bytes: of the other's.
    """
    blocks = rank.blocks
    start, end = (_event_of(rank, size_bytes) for size_bytes in (start_bytes, point_bytes))
    alive = (blocks.first > start) & (blocks.first < end) & (blocks.last > end)
    sums: Counter[Category] = Counter(dict.fromkeys(HELD, 0))
    for position in np.flatnonzero(alive & (blocks.requested_bytes > _HOST_BYTES)):
        category = CATEGORIES[rank.attribution.category[position]]
        sums[category] += int(blocks.requested_bytes[position])
    return {category: sums[category] for category in HELD}


def _event_of(rank: RankCapture, size_bytes: int) -> int:
    found = np.flatnonzero(rank.blocks.requested_bytes == size_bytes)
    assert len(found), f"rank {rank.rank} passed no point of {size_bytes} bytes"
    return int(rank.blocks.first[found[-1]])
