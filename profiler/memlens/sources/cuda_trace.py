"""Reads what torch's allocator tells of itself: lists of dictionaries become columns. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator import pieces
from memlens.allocator.regions import Segment
from memlens.allocator.snapshot import end_state
from memlens.disk.format import codes
from memlens.events import Action
from memlens.recording.names import Names
from memlens.sources.base import Block

__all__ = [
    "MARK_PREFIX",
    "SEGMENT_ACTIONS",
    "StackNumbers",
    "Trace",
    "active_requested_bytes",
    "blocks_of",
    "census_of",
]

Array = npt.NDArray[Any]
Entry = dict[str, Any]

MARK_PREFIX = "memlens "
"""Begins the metadata that we have allocations carry; the number of a mark follows."""

_ACTION = codes(Action)
_OURS = {
    name: _ACTION[name]
    for name in (
        "alloc",
        "free_requested",
        "free_completed",
        "segment_alloc",
        "segment_free",
        "segment_map",
        "segment_unmap",
    )
} | {"oom": _ACTION["out_of_memory"]}
"""Torch's name of an action -> ours. Others ("snapshot", workspaces) change no block."""
_FREE, _REQUESTED, _COMPLETED = (
    _ACTION[name] for name in ("free", "free_requested", "free_completed")
)
SEGMENT_ACTIONS = [code for name, code in _OURS.items() if name.startswith("segment_")]
_FIELDS = itemgetter("addr", "size", "stream", "time_us")
_FRAME = itemgetter("name", "filename", "line")


class Trace:
    """A stretch of one device's history, as columns."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        kept = [entry for entry in entries if entry["action"] in _OURS]
        for entry in kept:
            if "addr" not in entry:  # out of memory: what the device had free stands for it
                entry["addr"] = entry.get("device_free", 0)
        fields = list(map(_FIELDS, kept))
        columns = list(zip(*fields, strict=True)) if fields else [(), (), (), ()]
        self.entries = kept
        self.action: Array = np.array([_OURS[entry["action"]] for entry in kept], np.int8)
        self.address: Array = np.array(columns[0], np.uint64)
        self.size_bytes: Array = np.array(columns[1], np.int64)
        self.stream: Array = np.array([_signed(value) for value in columns[2]], np.int64)
        self.time_ns: Array = np.array(columns[3], np.int64) * 1000
        self.mark: Array = np.array(
            [_mark(entry.get("user_metadata", "")) for entry in kept], np.int64
        )
        self.calls = int(np.isin(self.action, (_ACTION["alloc"], _REQUESTED)).sum())
        """How many blocks were handed out and given back."""

    def net_requested_bytes(self) -> int:
        """By how much this stretch changes what is in use or waits for a stream, as requested."""
        grown = self.size_bytes[self.action == _ACTION["alloc"]].sum()
        return int(grown - self.size_bytes[self.action == _COMPLETED].sum())

    def without_empty_waits(self) -> Trace:
        """The same, with each free that was completed at once as one row."""
        if len(self.action) < 2:
            return self
        at_once = np.append(
            (self.action[:-1] == _REQUESTED)
            & (self.action[1:] == _COMPLETED)
            & (self.address[:-1] == self.address[1:]),
            False,
        )
        self.action[at_once] = _FREE
        keep = ~np.append(False, at_once[:-1])
        for name in ("action", "address", "size_bytes", "stream", "time_ns", "mark"):
            setattr(self, name, getattr(self, name)[keep])
        self.entries = [
            entry for entry, kept in zip(self.entries, keep.tolist(), strict=True) if kept
        ]
        return self


def _mark(metadata: str) -> int:
    if metadata.startswith(MARK_PREFIX):
        number = metadata[len(MARK_PREFIX) :]
        if number.isdecimal():
            return int(number)
    return -1


def _signed(stream: int) -> int:
    """A stream is a pointer; the column holds 64 bits with a sign."""
    return stream if stream < 2**63 else stream - 2**64


class StackNumbers:
    """Numbers the Python stacks of trace entries.

    Args:
        names: where frames are numbered.
        depth: how many innermost frames to keep; 0 keeps none.
    """

    def __init__(self, names: Names, depth: int) -> None:
        self._names = names
        self._depth = depth

    def of(self, entries: Iterable[Entry]) -> Array:
        """Number of each entry's innermost frame, or -1."""
        # Torch makes one object per distinct frame of a snapshot, so that stacks can be told apart by
        # the objects' addresses; those are meaningless for the next snapshot.
        known: dict[tuple[int, ...], int] = {}
        numbers = []
        for entry in entries:
            frames = entry.get("frames")
            if not frames or not self._depth:
                numbers.append(-1)
                continue
            key = tuple(map(id, frames))
            number = known.get(key)
            if number is None:
                number = known[key] = self._number(frames)
            numbers.append(number)
        return np.array(numbers, np.int32)

    def _number(self, frames: list[dict[str, Any]]) -> int:
        number = -1
        for name, file, line in map(_FRAME, reversed(frames[: self._depth])):
            number = self._names.frame(number, name, file, line)
        return number


def blocks_of(segments: Iterable[dict[str, Any]]) -> list[Block]:
    """Everything that the allocator holds, as a census: segments, and the blocks in use."""
    of_devices: dict[int, list[dict[str, Any]]] = {}
    for segment in segments:
        of_devices.setdefault(segment["device"], []).append(segment)
    return [
        block
        for device, mine in of_devices.items()
        for block in census_of(device, *end_state(mine))
    ]


def census_of(
    device: int, segments: Iterable[Segment], blocks: Iterable[pieces.Block]
) -> list[Block]:
    """What the allocator of one device holds, as a census."""
    found = [
        Block(each.address, each.size_bytes, device, stream=each.stream, is_segment=True)
        for each in segments
        if each.size_bytes
    ]
    found += [
        Block(
            each.address,
            each.size_bytes,
            device,
            each.requested_bytes,
            each.stream,
            is_pending=each.is_pending,
        )
        for each in blocks
    ]
    return found


def active_requested_bytes(segments: Iterable[dict[str, Any]], device: int) -> int | None:
    """What is in use on a device or waits for a stream, as requested; None: torch does not tell."""
    total = 0
    for segment in segments:
        if segment["device"] == device:
            if "requested_size" not in segment:
                return None
            total += segment["requested_size"]
    return total
