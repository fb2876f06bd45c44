"""Growth across steps: blocks that accumulate are suspected leaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.analysis.steps import StepBounds
from memlens.attribution.lifetimes import FOREVER, Lifetimes
from memlens.attribution.rules import Attribution
from memlens.attribution.segments import Segments

__all__ = ["Found", "find_growth"]

Array = npt.NDArray[Any]
_LEAST_STEPS = 3
_LEAST_REPLACED = 5


@dataclass(frozen=True)
class Found:
    """A group that grows; its blocks share category, module, name and stack."""

    example: int
    """The last block of the group."""
    bytes_per_step: int
    first_bytes: int
    last_bytes: int
    steps: int


def find_growth(
    blocks: Lifetimes, attribution: Attribution, segments: Segments, bounds: list[StepBounds]
) -> list[Found]:
    """Find groups of blocks whose bytes at the ends of steps rise, and do not fall.

    The first step is left out: it creates what stays (state, caches). Two kinds of group are found:

    * Blocks that stay: they must grow in at least three steps, in at least half of all, since a list
      may be appended to every other step only, and still in the second half of them, since a list
      may keep the last few.
    * Blocks that are replaced by larger ones (a buffer that is concatenated to): they must grow in
      each of at least five steps, for what lives for a step may well vary with the batches.
    """
    later = [item for item in bounds if item.step > 0]
    if len(later) < _LEAST_STEPS:
        return []
    ends = np.array([item.last_event for item in later], np.int64)
    born = np.searchsorted(ends, blocks.first, side="left")
    dead = np.searchsorted(ends, np.where(blocks.free_ns == FOREVER, ends[-1] + 1, blocks.last))
    looked_at = dead > born
    if bounds[0].step == 0:
        looked_at &= blocks.first > bounds[0].last_event
    stays = looked_at & ((dead - born >= 2) | (born == len(later) - 1))

    found: dict[tuple[int, ...], Found] = {}
    for chosen, is_growth in ((looked_at, _is_replaced), (stays, _accumulates)):
        members = np.flatnonzero(chosen)
        if not len(members):
            continue
        keys = np.stack(
            [
                attribution.category[members].astype(np.int64),
                attribution.module[members],
                attribution.name[members],
                blocks.stack[members].astype(np.int64),
            ]
        )
        _, group, count = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
        # What grows in half of the steps has as many blocks. The others are left out beforehand: a
        # table of all groups by all steps may be larger than the machine's memory.
        enough = count[group.ravel()] * 2 >= len(later) - 1
        members, keys = members[enough], keys[:, enough]
        groups, group = np.unique(keys, axis=1, return_inverse=True)
        group = group.ravel()
        change = np.zeros((groups.shape[1], len(later) + 1), np.int64)
        size = blocks.size_bytes[members]
        np.add.at(change, (group, born[members]), size)
        np.subtract.at(change, (group, np.minimum(dead[members], len(later))), size)
        level = np.cumsum(change, axis=1)[:, : len(later)]
        example = np.zeros(groups.shape[1], np.int64)
        example[group] = members
        for number in np.flatnonzero(is_growth(np.diff(level, axis=1))).tolist():
            first, last = int(level[number, 0]), int(level[number, -1])
            found[tuple(groups[:, number].tolist())] = Found(
                example=int(example[number]),
                bytes_per_step=(last - first) // (len(later) - 1),
                first_bytes=first,
                last_bytes=last,
                steps=len(later),
            )
    return sorted(found.values(), key=lambda item: -item.bytes_per_step)


def _accumulates(increase: Array) -> Array:
    steps = increase.shape[1]
    rises = np.count_nonzero(increase > 0, axis=1)
    late = increase[:, steps // 2 :]
    still_rises = np.count_nonzero(late > 0, axis=1) * 3 >= late.shape[1]
    enough = (rises >= min(_LEAST_STEPS, steps)) & (rises * 2 >= steps)
    return np.asarray(enough & still_rises & np.all(increase >= 0, axis=1))


def _is_replaced(increase: Array) -> Array:
    return np.asarray(np.all(increase > 0, axis=1) & (increase.shape[1] >= _LEAST_REPLACED))
