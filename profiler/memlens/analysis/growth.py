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

    The first step is left out: it creates what stays (state, caches). A group must grow in at least
    three steps and in at least half of all, since a list may be appended to every other step only.
    """
    later = [item for item in bounds if item.step > 0]
    if len(later) < _LEAST_STEPS:
        return []
    ends = np.array([item.last_event for item in later], np.int64)
    born = np.searchsorted(ends, blocks.first, side="left")
    dead = np.searchsorted(ends, np.where(blocks.free_ns == FOREVER, ends[-1] + 1, blocks.last))
    # Alive at the end of at least two steps, born in a step that is looked at.
    old = np.flatnonzero((dead - born >= 2) | ((born == len(later) - 1) & (dead > born)))
    old = old[blocks.first[old] > bounds[0].last_event] if bounds[0].step == 0 else old
    if not len(old):
        return []
    keys = np.stack(
        [
            attribution.category[old].astype(np.int64),
            attribution.module[old],
            attribution.name[old],
            blocks.stack[old].astype(np.int64),
        ]
    )
    _, group = np.unique(keys, axis=1, return_inverse=True)
    group = group.ravel()
    groups = int(group.max()) + 1
    change = np.zeros((groups, len(later) + 1), np.int64)
    np.add.at(change, (group, born[old]), blocks.size_bytes[old])
    np.subtract.at(change, (group, np.minimum(dead[old], len(later))), blocks.size_bytes[old])
    level = np.cumsum(change, axis=1)[:, : len(later)]
    increase = np.diff(level, axis=1)
    rises = np.count_nonzero(increase > 0, axis=1)
    grows = (
        (rises >= min(_LEAST_STEPS, len(later) - 1))
        & (rises * 2 >= increase.shape[1])
        & np.all(increase >= 0, axis=1)
    )
    example = np.zeros(groups, np.int64)
    example[group] = old
    found = [
        Found(
            example=int(example[number]),
            bytes_per_step=int((level[number, -1] - level[number, 0]) // max(len(later) - 1, 1)),
            first_bytes=int(level[number, 0]),
            last_bytes=int(level[number, -1]),
            steps=len(later),
        )
        for number in np.flatnonzero(grows).tolist()
    ]
    return sorted(found, key=lambda item: -item.bytes_per_step)
