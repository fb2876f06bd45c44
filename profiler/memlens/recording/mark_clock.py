"""Puts events between the marks between which they happened.

An allocator with a clock of its own tells the time in whole microseconds, converted from a counter of
the processor: enough to see when, not enough to say on which side of a mark. So each event carries the
number of the last mark that its own thread had made, and its time is moved by as much as that asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MarkClock"]

Array = npt.NDArray[Any]


class MarkClock:
    """Remembers when each thread made which mark, from one batch of events to the next."""

    def __init__(self) -> None:
        self._noted: list[tuple[int, int, int]] = []
        self._last: dict[int, int] = {}
        """Number of the last mark of each thread."""

    def note(self, number: int, time_ns: int, thread: int) -> None:
        """A thread has made a mark; numbers ascend."""
        self._noted.append((number, time_ns, thread))

    def correct(self, time_ns: Array, mark: Array, device: Array) -> Array:
        """Times of a batch of events, each at or after its mark and before its thread's next one.

        Args:
            time_ns: as the allocator tells it.
            mark: number of the mark that each event carries, or -1.
            device: whose events stay in the order in which they came.

        Returns:
            The times; marks noted so far are forgotten.
        """
        noted = self._noted[:]
        del self._noted[: len(noted)]
        next_of: dict[int, int] = {}
        upper: list[int] = []
        for _, at, thread in reversed(noted):
            upper.append(next_of.get(thread, _NEVER))
            next_of[thread] = at
        # An event at the very beginning of the batch may still carry a mark of the last one.
        earlier = {number: next_of.get(thread, _NEVER) for thread, number in self._last.items()}
        for number, _, thread in noted:
            self._last[thread] = number

        numbers = np.array([number for number, _, _ in noted] or [_NEVER], np.int64)
        begins = np.array([at for _, at, _ in noted] or [0], np.int64)
        ends = np.array(upper[::-1] or [_NEVER], np.int64)
        place = np.minimum(np.searchsorted(numbers, mark), len(numbers) - 1)
        found = numbers[place] == mark
        low = np.where(found, begins[place], 0)
        high = np.where(found, ends[place], _NEVER)
        for number, end in earlier.items():
            high[mark == number] = end
        corrected: Array = np.maximum(np.minimum(time_ns, high - 1), low)
        for each in np.unique(device).tolist():
            mine = device == each
            corrected[mine] = np.maximum.accumulate(corrected[mine])
        return corrected


_NEVER = np.iinfo(np.int64).max
