"""The segments of a rank as a torch memory snapshot tells of them: what became of them, and the end.

Torch's viewer goes back from the segments at the end, undoing one entry after the other, and expects
every block to lie in a segment while it is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator.regions import Regions, Segment
from memlens.allocator.settings import SMALL_SEGMENT_BYTES
from memlens.exporters.rank_history import SegmentEvent

__all__ = ["Change", "Held", "SegmentsSoFar", "as_snapshot", "stretches_around"]

Array = npt.NDArray[Any]

PAGE_BYTES = 1 << 21


@dataclass(frozen=True)
class Change:
    """An entry of the trace: `segment_alloc`, `segment_free`, `segment_map`, `segment_unmap`."""

    action: str
    time_ns: int
    segment: Segment


@dataclass(frozen=True)
class Held:
    """A block that is alive at the end."""

    address: int
    size_bytes: int
    requested_bytes: int
    frames: list[dict[str, Any]]


class SegmentsSoFar:
    """Follows what was recorded of segments.

    Args:
        events: in their order; a census after a pause tells of all segments once more.
        is_expandable: segments that a census tells of are expandable ones.
    """

    def __init__(self, events: list[SegmentEvent], *, is_expandable: bool) -> None:
        self.regions = Regions()
        self._events = events
        self._at = 0
        self._is_expandable = is_expandable

    def until(self, row: int | None) -> list[Change]:
        """What became of segments before a row, and after the one that was asked for last.

        Those that are there when the recording begins need no entry.
        """
        changes: list[Change] = []
        while self._at < len(self._events):
            event = self._events[self._at]
            if row is not None and event.row >= row:
                break
            if event.action == "segment_census":
                is_first = self._at == 0
                found = self._census(event.time_ns)
                changes += [] if is_first else found
            else:
                changes.append(self._follow(event))
                self._at += 1
        return changes

    def holds(self, address: int, size_bytes: int) -> bool:
        """Whether a block lies within a segment."""
        segment = self.regions.find(address)
        return segment is not None and address + size_bytes <= segment.end

    def _follow(self, event: SegmentEvent) -> Change:
        is_part = event.action in ("segment_map", "segment_unmap")
        segment = Segment(
            event.address,
            event.size_bytes,
            event.stream,
            is_small=event.size_bytes == SMALL_SEGMENT_BYTES,
            is_expandable=is_part,
        )
        self.regions.remove(segment.address, segment.end)
        if event.action in ("segment_alloc", "segment_map"):
            self.regions.add(segment)
        return Change(event.action, event.time_ns, segment)

    def _census(self, time_ns: int) -> list[Change]:
        """Everything anew: what is not there any more was given back, what is new was taken."""
        before = {segment.address: segment for segment in self.regions}
        self.regions = Regions()
        while self._at < len(self._events) and self._events[self._at].action == "segment_census":
            event = self._events[self._at]
            self.regions.add(
                Segment(
                    event.address,
                    event.size_bytes,
                    event.stream,
                    is_small=event.size_bytes == SMALL_SEGMENT_BYTES,
                    is_expandable=self._is_expandable,
                )
            )
            self._at += 1
        now = {segment.address: segment for segment in self.regions}
        return [
            *(Change("segment_free", time_ns, b) for a, b in before.items() if now.get(a) != b),
            *(Change("segment_alloc", time_ns, b) for a, b in now.items() if before.get(a) != b),
        ]


def stretches_around(address: Array, size_bytes: Array) -> list[Segment]:
    """Where an allocator tells of no segments: the stretches of 2 MiB pages in which blocks lie."""
    if not len(address):
        return []
    start = address.astype(np.int64) // PAGE_BYTES
    end = (address.astype(np.int64) + size_bytes - 1) // PAGE_BYTES + 1
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    first = np.flatnonzero(np.append(True, start[1:] > reach[:-1]))
    last = np.append(first[1:], len(start)) - 1
    return [
        Segment(begin * PAGE_BYTES, (stop - begin) * PAGE_BYTES)
        for begin, stop in zip(start[first].tolist(), reach[last].tolist(), strict=True)
    ]


def as_snapshot(
    segments: Iterable[Segment], held: Mapping[int, Held], device: int
) -> list[dict[str, Any]]:
    """The segments at the end, each cut into the blocks that are alive in it, and what is free.

    Args:
        segments: in the order of their addresses.
        held: by address.
        device: number of the device in the snapshot.
    """
    waiting = [held[address] for address in sorted(held, reverse=True)]
    found = []
    for segment in segments:
        blocks: list[dict[str, Any]] = []
        now = segment.address
        while waiting and waiting[-1].address < segment.end:
            block = waiting.pop()
            if block.address < now:
                continue  # its memory is another's by now: an event was lost
            if block.address > now:
                blocks.append(_free(now, block.address - now))
            blocks.append(
                {
                    "address": block.address,
                    "size": block.size_bytes,
                    "requested_size": block.requested_bytes,
                    "state": "active_allocated",
                    "frames": block.frames,
                }
            )
            now = block.address + block.size_bytes
        if now < segment.end:
            blocks.append(_free(now, segment.end - now))
        active = [block for block in blocks if block["state"] != "inactive"]
        allocated = sum(block["size"] for block in active)
        found.append(
            {
                "device": device,
                "address": segment.address,
                "total_size": segment.size_bytes,
                "allocated_size": allocated,
                "active_size": allocated,
                "requested_size": sum(block["requested_size"] for block in active),
                "stream": segment.stream,
                "segment_type": "small" if segment.is_small else "large",
                "segment_pool_id": (0, 0),
                "is_expandable": segment.is_expandable,
                "frames": [],
                "blocks": blocks,
            }
        )
    return found


def _free(address: int, size_bytes: int) -> dict[str, Any]:
    return {
        "address": address,
        "size": size_bytes,
        "requested_size": size_bytes,
        "state": "inactive",
        "frames": [],
    }
