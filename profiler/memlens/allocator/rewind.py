"""What the allocator held when a history began of which only the end is known.

A ring of trace entries that began late tells nothing of what was there before. But the end is known, from
the list of segments in the same snapshot, and every entry can be undone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from memlens.allocator.pieces import Block
from memlens.allocator.regions import Regions, Segment
from memlens.allocator.settings import SMALL_SEGMENT_BYTES, AllocatorSettings, rounding
from memlens.allocator.snapshot import end_state
from memlens.events import Action

__all__ = ["starting_state"]

_NAME = [str(action.value) for action in Action]


@dataclass
class _Known:
    """A block, as it is known so far."""

    size: int
    requested: int
    stream: int
    is_pending: bool = False
    is_guess: bool = False
    """Its size is the rounded request; it may be more."""


def starting_state(
    columns: Mapping[str, npt.NDArray[Any]],
    segments: Sequence[Mapping[str, Any]],
    settings: AllocatorSettings,
) -> tuple[list[Segment], list[Block]]:
    """Undo a history, from its end.

    Args:
        columns: the history as for `follow`, of one device; it may hold any rows but a census.
        segments: `segments` of the torch memory snapshot at its end, of that device.
        settings: of the allocator.

    Returns:
        Segments and blocks at the beginning, both in the order of addresses. A block that is given
        back within the history has the size that its request rounds to, and more where what lies
        behind it cannot have been free.
    """
    rewind = _Rewind(*end_state(segments), settings)
    names = [_NAME[code] for code in columns["action"].tolist()]
    rows = zip(
        names,
        columns["address"].tolist(),
        columns["requested_bytes"].tolist(),
        rounding(settings, columns["requested_bytes"]).tolist(),
        columns["stream"].tolist(),
        strict=True,
    )
    for row in reversed(list(rows)):
        rewind.undo(*row)
    return list(rewind.regions), rewind.all_blocks()


class _Rewind:
    def __init__(
        self, segments: list[Segment], blocks: list[Block], settings: AllocatorSettings
    ) -> None:
        self.settings = settings
        self.regions = Regions()
        for segment in segments:
            self.regions.add(segment)
        self.blocks = {
            block.address: _Known(
                block.size_bytes, block.requested_bytes, block.stream, block.is_pending
            )
            for block in blocks
        }
        self.order = sorted(self.blocks)

    def all_blocks(self) -> list[Block]:
        return [
            Block(address, known.size, known.requested, known.stream, known.is_pending)
            for address, known in ((address, self.blocks[address]) for address in self.order)
        ]

    def undo(self, name: str, address: int, requested: int, rounded: int, stream: int) -> None:
        if name == "alloc":
            if self.blocks.pop(address, None) is not None:
                del self.order[bisect_left(self.order, address)]
        elif name in ("free", "free_completed", "census_free"):
            self._put(address, requested, rounded, stream, is_pending=name == "free_completed")
        elif name == "free_requested":
            if address in self.blocks:
                self.blocks[address].is_pending = False
        elif name in ("segment_alloc", "segment_map"):
            self.regions.remove(address, address + requested)
        elif name in ("segment_free", "segment_unmap"):
            self.regions.add(
                Segment(
                    address,
                    requested,
                    stream,
                    is_small=requested == SMALL_SEGMENT_BYTES,
                    is_expandable=name == "segment_unmap",
                )
            )

    def _put(
        self, address: int, requested: int, rounded: int, stream: int, *, is_pending: bool
    ) -> None:
        segment = self.regions.find(address)
        if segment is None or address in self.blocks:
            return
        place = bisect_right(self.order, address)
        follower = self.order[place] if place < len(self.order) else segment.end
        room = min(follower, segment.end) - address
        least_rest = self.settings.least_rest_bytes(rounded)
        if least_rest is None or room - rounded < least_rest:
            rounded = room
        self.blocks[address] = _Known(rounded, requested, stream, is_pending, is_guess=True)
        insort(self.order, address)
        self._stretch_before(address)

    def _stretch_before(self, address: int) -> None:
        """What lies between two blocks belongs to the first, where it is too little to lie free."""
        place = bisect_left(self.order, address) - 1
        segment = self.regions.find(address)
        if place < 0 or segment is None or self.order[place] < segment.address:
            return
        known = self.blocks[self.order[place]]
        gap = address - self.order[place] - known.size
        least_rest = self.settings.least_rest_bytes(known.size)
        if known.is_guess and gap > 0 and (least_rest is None or gap < least_rest):
            known.size += gap
