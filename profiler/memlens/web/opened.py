"""A rank whose streams are read, with what the pages need beside its answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.answers import Allocation, Growth, Step
from memlens.attribution.lifetimes import FOREVER
from memlens.events import Category
from memlens.exporters.rank_history import reserved_of
from memlens.rank import RankCapture
from memlens.web.pyramid import Pyramid

__all__ = ["CATEGORY_KEYS", "OpenedRank"]

Array = npt.NDArray[Any]

CATEGORY_KEYS = [category.value for category in Category]
_EXPECTED_BYTES = 30
"""What a rank takes for each event beside the columns of its blocks: those of its events and tags."""


class OpenedRank:
    """Everything is worked out when it is made, so that threads may ask it at the same time.

    Times that go out are nanoseconds since the rank's first event.

    Args:
        rank: the capture.

    Raises:
        CaptureError: it can not be read.
    """

    def __init__(self, rank: RankCapture) -> None:
        self.rank = rank
        self.blocks = rank.blocks
        self.attribution = rank.attribution
        self.segments = rank.segments
        self.pyramid = Pyramid(self.blocks, self.attribution.category)
        time_ns = self.blocks.time_ns
        self.origin_ns = int(time_ns[0]) if len(time_ns) else 0
        self.total_ns = int(time_ns[-1]) - self.origin_ns if len(time_ns) else 0
        self._texts: dict[tuple[str, int], str] = {}

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        arrays = [
            value
            for part in (self.blocks, self.attribution, self.segments)
            for value in vars(part).values()
            if isinstance(value, np.ndarray)
        ]
        own = sum(array.nbytes for array in arrays) + self.pyramid.size_bytes
        return own + _EXPECTED_BYTES * len(self.blocks.time_ns)

    # -- the job -------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every training step."""
        return self.rank.steps()

    @cached_property
    def growth(self) -> tuple[Growth, ...]:
        """What accumulates from step to step."""
        return self.rank.growth()

    @cached_property
    def step_starts(self) -> list[tuple[int, int]]:
        """Number of each step and when it began, since the Unix epoch, in order."""
        starts = sorted(self.segments.step_start_ns.items())
        if len(starts) > 1 and starts[-1][0] not in self.segments.trained:
            starts.pop()  # merely the end of the one before
        return [(0, self.origin_ns), *starts] if not starts or starts[0][0] > 0 else starts

    @cached_property
    def phase_changes(self) -> tuple[Array, Array]:
        """When the phase changed, since the Unix epoch, and to which; from before the first event on."""
        start_ns, phase = self.segments.start_ns, self.segments.phase
        changes = np.flatnonzero(np.append(True, phase[1:] != phase[:-1]))
        return start_ns[changes], phase[changes]

    @cached_property
    def capacity_bytes(self) -> int | None:
        """What the device has for the job; None: it is not known."""
        for event in self.rank.out_of_memory:
            return event.limit_bytes or event.device_total_bytes
        known = self.rank.header.get("capacity_bytes") or []
        devices = self.rank.header["devices"]
        return dict(zip(devices, known, strict=False)).get(self.rank.device)

    @cached_property
    def reserved(self) -> tuple[Array, Array] | None:
        """When what the allocator had taken from the device changed, and to how much."""
        return reserved_of(self.rank)

    def reserved_over(self, time: Array, until: Array) -> Array:
        """The most that it had from some times since the first event on, before others."""
        assert self.reserved is not None
        changed_ns, level = self.reserved
        first = np.searchsorted(changed_ns, time + self.origin_ns, side="right")
        last = np.searchsorted(changed_ns, until + self.origin_ns, side="left")
        # Nothing at first; and one more behind the end, which the last stretch may name.
        levels = np.concatenate([[0], level, [0]])
        stretches = np.stack([first, np.maximum(first, last) + 1], axis=1).ravel()
        found: Array = np.maximum.reduceat(levels, stretches)[::2]
        return found

    # -- moments -------------------------------------------------------------------------------

    def event_at(self, time_ns: int | None) -> int:
        """The last event at a time since the first one; None: that of the peak. -1: before all."""
        if time_ns is None:
            return self.pyramid.peak_event
        at = self.origin_ns + time_ns
        return int(np.searchsorted(self.blocks.time_ns, at, side="right")) - 1

    def time_of(self, event: int) -> int:
        """When an event was."""
        return int(self.blocks.time_ns[event]) - self.origin_ns if event >= 0 else 0

    def alive_after(self, event: int) -> Array:
        """Rows of the blocks alive after an event."""
        begun = int(np.searchsorted(self.blocks.first, event, side="right"))
        found: Array = np.flatnonzero(self.blocks.last[:begun] > event)
        return found

    def place(self, event: int) -> dict[str, Any]:
        """What the job was doing at an event."""
        place = self.rank.place_at(self.origin_ns + self.time_of(event))
        return {"step": place.step, "phase": place.phase.value, "module": place.module}

    def moment(self, event: int) -> dict[str, Any]:
        """How much was allocated after an event, when, and what the job was doing."""
        return {
            "time": self.time_of(event),
            "allocated_bytes": int(self.pyramid.after(event).sum()),
            **self.place(event),
        }

    @cached_property
    def peak(self) -> dict[str, Any]:
        """The moment with the most allocated bytes."""
        return self.moment(self.pyramid.peak_event)

    # -- blocks --------------------------------------------------------------------------------

    def born(self, row: int) -> int:
        """When a block was allocated."""
        return int(self.blocks.alloc_ns[row]) - self.origin_ns

    def freed(self, row: int) -> int | None:
        """When it was given back; None: never."""
        free_ns = int(self.blocks.free_ns[row])
        return None if free_ns == FOREVER else free_ns - self.origin_ns

    def texts(
        self, what: str, rows: Array, numbers: Array, text_of: Callable[[Allocation], str]
    ) -> tuple[list[str], Array]:
        """A text of blocks that is the same for all blocks with the same number.

        Args:
            what: names the kind of text; what was made once is kept.
            rows: of the blocks.
            numbers: that of each block.
            text_of: makes the text, from one of them.

        Returns:
            The different texts, and for each block which of them.
        """
        values, example, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        found = []
        for number, row in zip(values.tolist(), rows[example].tolist(), strict=True):
            key = (what, number)
            if key not in self._texts:
                self._texts[key] = text_of(self.rank.allocation(row))
            found.append(self._texts[key])
        return found, inverse.ravel()
