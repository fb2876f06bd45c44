"""Which memory the allocator holds: stretches of addresses that it has taken from the device."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, replace

__all__ = ["Regions", "Segment"]


@dataclass(frozen=True)
class Segment:
    """A stretch that was taken from the device."""

    address: int
    size_bytes: int
    stream: int = 0
    is_small: bool = False
    """It belongs to the pool for requests of up to 1 MiB."""
    is_expandable: bool = False
    """It is what is mapped of a larger range of addresses, and can grow and shrink."""

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size_bytes


class Regions:
    """Segments that do not overlap, found by any address inside."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: dict[int, Segment] = {}

    def __iter__(self) -> Iterator[Segment]:
        """In the order of addresses."""
        return (self._segments[start] for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, address: int) -> Segment | None:
        """The segment that holds an address."""
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        segment = self._segments[self._starts[place]]
        return segment if address < segment.end else None

    def add(self, segment: Segment) -> None:
        """Put in a segment; what overlaps it must have been removed.

        An expandable one becomes one with its neighbours, if they are of its kind.
        """
        if segment.is_expandable:
            before = self.find(segment.address - 1)
            if before is not None and _belong_together(before, segment):
                self._drop(before)
                segment = replace(before, size_bytes=segment.end - before.address)
            after = self._segments.get(segment.end)
            if after is not None and _belong_together(segment, after):
                self._drop(after)
                segment = replace(segment, size_bytes=after.end - segment.address)
        insort(self._starts, segment.address)
        self._segments[segment.address] = segment

    def overlapping(self, address: int, end: int) -> list[Segment]:
        """Segments that a stretch touches, in the order of addresses."""
        found = []
        for index in range(max(bisect_right(self._starts, address) - 1, 0), len(self._starts)):
            segment = self._segments[self._starts[index]]
            if segment.address >= end:
                break
            if segment.end > address:
                found.append(segment)
        return found

    def remove(self, address: int, end: int) -> None:
        """Take a stretch out of all segments that it touches."""
        for segment in self.overlapping(address, end):
            self._drop(segment)
            for start, stop in ((segment.address, address), (end, segment.end)):
                if start < stop:
                    insort(self._starts, start)
                    self._segments[start] = replace(segment, address=start, size_bytes=stop - start)

    def _drop(self, segment: Segment) -> None:
        del self._segments[segment.address]
        del self._starts[bisect_right(self._starts, segment.address) - 1]


def _belong_together(one: Segment, other: Segment) -> bool:
    return one.is_expandable and other.is_expandable and one.stream == other.stream
