"""What lies where within a block that several tensors share: a flat buffer of many parameters."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes

__all__ = ["Parts", "find_parts"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parts:
    """Parallel arrays, one entry per part, ordered by block and offset. No two parts overlap."""

    block: Array
    """Position of the block among the lifetimes."""
    offset_bytes: Array
    """From the block's beginning."""
    size_bytes: Array
    name: Array
    """Number of the tensor's name."""
    module: Array
    """Number of the module that owns it, or -1."""

    def of(self, block: int) -> range:
        """Positions of a block's parts."""
        first, end = np.searchsorted(self.block, [block, block + 1])
        return range(int(first), int(end))

    def within(self, chosen: Array) -> Array:
        """Positions of the parts of chosen blocks (a mask over the lifetimes)."""
        found: Array = np.flatnonzero(chosen[self.block])
        return found


def find_parts(
    blocks: Lifetimes, category: Array, tags: dict[str, Array], tag: Array, block: Array
) -> Parts:
    """Parts of blocks, from tags of tensors that are smaller than their block.

    Where tensors overlap, the smaller ones are parts: views that name parameters, not the flat tensor
    that holds them. Of several tensors in one place the first holds.

    Args:
        blocks: one row per block.
        category: of each block; tags of another one say nothing of its parts.
        tags: what observers said, columns as on disk.
        tag: positions of the tags that speak of a block.
        block: the block that each speaks of.
    """
    offset, size = tags["offset_bytes"][tag], tags["size_bytes"][tag]
    room = blocks.requested_bytes[block]
    useful = (tags["category"][tag] == category[block]) & (offset >= 0) & (size > 0)
    useful &= (size < room) & (offset + size <= room)
    tag, block, offset, size = tag[useful], block[useful], offset[useful], size[useful]
    order = np.lexsort((tags["time_ns"][tag], size, offset, block))
    tag, block, offset, size = tag[order], block[order], offset[order], size[order]
    keep = np.ones(len(tag), bool)
    keep[1:] = np.any([column[1:] != column[:-1] for column in (block, offset, size)], axis=0)
    tag, block, offset, size = tag[keep], block[keep], offset[keep], size[keep]
    overlaps = np.zeros(len(tag), bool)
    overlaps[1:] = (block[1:] == block[:-1]) & (offset[:-1] + size[:-1] > offset[1:])
    if np.any(overlaps):
        chosen = ~np.isin(block, block[overlaps])
        for number in np.unique(block[overlaps]).tolist():
            first, end = np.searchsorted(block, [number, number + 1]).tolist()
            chosen[first + _smallest(offset[first:end], size[first:end])] = True
        tag, block, offset, size = tag[chosen], block[chosen], offset[chosen], size[chosen]
    return Parts(
        block,
        offset,
        size,
        tags["name"][tag].astype(np.int64),
        tags["module"][tag].astype(np.int64),
    )


def _smallest(offset: Array, size: Array) -> Array:
    """Positions of ranges that do not overlap, smaller ones first."""
    taken_from: list[int] = []
    taken_to: list[int] = []
    found = []
    for position in np.argsort(size, kind="stable").tolist():
        start, end = int(offset[position]), int(offset[position] + size[position])
        place = bisect_left(taken_from, start)
        before = taken_to[place - 1] if place else 0
        after = taken_from[place] if place < len(taken_from) else end
        if before <= start and end <= after:
            taken_from.insert(place, start)
            taken_to.insert(place, end)
            found.append(position)
    return np.array(sorted(found), np.int64)
