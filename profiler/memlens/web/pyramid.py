"""Levels of memory over a rank's events, fast for any window: what each bucket of events comes to.

A running total per event and category would take 100 bytes per event. Kept is, per bucket of 64 events,
where it is highest and the categories there and at its end (3 bytes per event); what lies between is
summed up again from the blocks that begin and end there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes

__all__ = ["BUCKET", "Levels", "Pyramid"]

Array = npt.NDArray[Any]

BUCKET = 64
_AT_ONCE = 1024
"""Buckets summed up together: what that takes fits into a processor's cache."""


@dataclass(frozen=True)
class Levels:
    """After each of some events in a row."""

    first: int
    """The first of these events."""
    total: Array
    categories: Array
    """One row for each of the pyramid's categories; they sum to `total`."""


class Pyramid:
    """Levels of one rank and device.

    Args:
        blocks: one row per block, ordered by the event that begins it.
        category: position in Category of each block.
    """

    def __init__(self, blocks: Lifetimes, category: Array) -> None:
        self._blocks = blocks
        self.count = len(blocks.time_ns)
        """Of events."""
        buckets = -(-self.count // BUCKET)
        self.categories: list[int] = np.flatnonzero(
            np.bincount(category, minlength=1) if len(category) else np.zeros(1)
        ).tolist()
        """Positions in Category that occur."""
        slot = np.zeros(128, np.int8)
        slot[self.categories] = np.arange(len(self.categories))
        self._slot = slot[category]
        ended = np.flatnonzero(blocks.last < self.count).astype(np.int32)
        self._ended = ended[np.argsort(blocks.last[ended], kind="stable")]
        """Blocks in the order of their ends."""
        edges = np.arange(buckets + 1) * BUCKET
        self._begun_before = np.searchsorted(blocks.first, edges)
        self._ended_before = np.searchsorted(blocks.last[self._ended], edges)
        self.high_event = np.zeros(buckets, np.int64)
        """The first event of each bucket after which the most is allocated."""
        self.high_bytes = np.zeros(buckets, np.int64)
        self.at_high = np.zeros((buckets, len(self.categories)), np.int64)
        """Bytes per category after it."""
        self.at_end = np.zeros((buckets, len(self.categories)), np.int64)
        """And after the bucket's last event."""
        for begin in range(0, buckets, _AT_ONCE):
            self._fill(begin, min(begin + _AT_ONCE, buckets))

    def _fill(self, begin: int, end: int) -> None:
        levels = self.levels(begin, end)
        width = (end - begin) * BUCKET
        total = np.full(width, -1, np.int64)
        total[: len(levels.total)] = levels.total
        highest = np.argmax(total.reshape(-1, BUCKET), axis=1) + np.arange(0, width, BUCKET)
        last = np.minimum(np.arange(BUCKET - 1, width, BUCKET), len(levels.total) - 1)
        self.high_event[begin:end] = highest + levels.first
        self.high_bytes[begin:end] = levels.total[highest]
        self.at_high[begin:end] = levels.categories[:, highest].T
        self.at_end[begin:end] = levels.categories[:, last].T

    @property
    def size_bytes(self) -> int:
        """That it takes itself."""
        return sum(each.nbytes for each in self.__dict__.values() if isinstance(each, np.ndarray))

    def levels(self, begin: int, end: int) -> Levels:
        """After every event of some buckets in a row (all before `begin` are filled)."""
        blocks = self._blocks
        first = begin * BUCKET
        width = min(end * BUCKET, self.count) - first
        change = np.zeros((len(self.categories), width), np.int64)
        born = slice(self._begun_before[begin], self._begun_before[end])
        # An event begins one block at most, but may end several: where recording stops.
        change[self._slot[born], blocks.first[born] - first] = blocks.size_bytes[born]
        gone = self._ended[self._ended_before[begin] : self._ended_before[end]]
        np.subtract.at(
            change, (self._slot[gone], blocks.last[gone] - first), blocks.size_bytes[gone]
        )
        if begin and width:
            change[:, 0] += self.at_end[begin - 1]
        np.cumsum(change, axis=1, out=change)
        return Levels(first, change.sum(axis=0), change)

    def after(self, event: int) -> Array:
        """Bytes per category after one event; -1: before all."""
        if event < 0:
            return np.zeros(len(self.categories), np.int64)
        levels = self.levels(event // BUCKET, event // BUCKET + 1)
        found: Array = levels.categories[:, event - levels.first]
        return found

    @property
    def peak_event(self) -> int:
        """The first event after which the most is allocated; -1: there is none."""
        if not self.count:
            return -1
        return int(self.high_event[int(np.argmax(self.high_bytes))])
