"""What exporters need that write every event, and not answers: actions, memory reserved, stretches.

A rank's questions are about moments; this looks at its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.segments import PHASES
from memlens.disk.format import codes
from memlens.events import Action

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = [
    "Actions",
    "SegmentEvent",
    "Stretch",
    "actions_of",
    "module_names",
    "modules_of",
    "phases_of",
    "reserved_of",
    "segment_events_of",
    "streams_of",
    "tensor_names",
]

Array = npt.NDArray[Any]


_CODE = codes(Action)
_OF_SEGMENTS = {code: name for name, code in _CODE.items() if name.startswith("segment_")}


@dataclass(frozen=True)
class Actions:
    """What became of some blocks, in order: each is allocated once, and freed at most once.

    Where recording paused, what was alive by then is freed when it goes on, and allocated anew by the
    census; as for `RankCapture.timeline`, nothing changes before that.
    """

    time_ns: Array
    block: Array
    """Position among the blocks that were asked for."""
    is_begin: Array
    row: Array
    """Place among all that was recorded; what ends with a pause comes before what has this place."""
    allocated_bytes: Array
    """By all blocks, after it and all else that happened with it."""
    reserved_bytes: Array | None
    """After it; None: the allocator takes nothing in advance."""


def actions_of(rank: RankCapture, chosen: Array) -> Actions:
    """Allocations and frees of some of a rank's blocks, of which the rows are given."""
    blocks, history = rank.blocks, rank.history
    last = blocks.last[chosen]
    ended = np.flatnonzero(last < len(blocks.time_ns))
    event = np.concatenate([last[ended], blocks.first[chosen]])
    block = np.concatenate([ended, np.arange(len(chosen))])
    is_begin = np.arange(len(event)) >= len(ended)
    order = np.lexsort((is_begin, event))
    event, block, is_begin = event[order], block[order], is_begin[order]
    time_ns = blocks.time_ns[event]
    told_row = blocks.row[event]
    ended_ns = blocks.free_ns[chosen][block]
    paused = ~is_begin & (ended_ns != time_ns)
    row = told_row.astype(np.int64)
    row[paused] = np.searchsorted(history.told["time_ns"], ended_ns[paused], side="right")
    return Actions(
        time_ns=time_ns,
        block=block,
        is_begin=is_begin,
        row=row,
        allocated_bytes=history.running[event],
        reserved_bytes=None if history.reserved is None else history.reserved[told_row],
    )


def streams_of(rank: RankCapture, chosen: Array) -> Array:
    """The streams of some blocks."""
    streams: Array = rank.history.told["stream"][rank.blocks.row[rank.blocks.first[chosen]]]
    return streams


def tensor_names(rank: RankCapture, numbers: Array) -> dict[int, str]:
    """What observers call the tensors whose numbers are in a column; empty for none."""
    return {number: rank.texts.tensor_name(number) for number in np.unique(numbers).tolist()}


@dataclass(frozen=True)
class SegmentEvent:
    """What the allocator took from the device, or gave back."""

    row: int
    """As in `Actions`."""
    time_ns: int
    action: str
    """As `memlens.events.Action` calls it; a census tells of all segments, as they are."""
    address: int
    size_bytes: int
    stream: int


def segment_events_of(rank: RankCapture) -> list[SegmentEvent]:
    """All that was recorded of segments; nothing where the allocator takes nothing in advance."""
    told = rank.history.told
    rows = np.flatnonzero(np.isin(told["action"], list(_OF_SEGMENTS)))
    size = np.maximum(told["allocated_bytes"][rows], told["requested_bytes"][rows])
    columns = (told[name][rows].tolist() for name in ("time_ns", "action", "address", "stream"))
    return [
        SegmentEvent(row, time, _OF_SEGMENTS[action], address, size_bytes, stream)
        for row, time, action, address, stream, size_bytes in zip(
            rows.tolist(), *columns, size.tolist(), strict=True
        )
    ]


def reserved_of(rank: RankCapture) -> tuple[Array, Array] | None:
    """Times, and what the allocator has taken from the device by then; None: it takes nothing."""
    reserved = rank.history.reserved
    return None if reserved is None else (rank.history.told["time_ns"], reserved)


@dataclass(frozen=True)
class Stretch:
    """A time in which the job did one thing."""

    start_ns: int
    end_ns: int
    name: str


def phases_of(rank: RankCapture) -> Iterator[Stretch]:
    """The phases of a rank one after the other, from its first event to its last."""
    for start_ns, end_ns, phase in _runs(rank, rank.segments.phase):
        yield Stretch(start_ns, end_ns, PHASES[phase].value)


def modules_of(rank: RankCapture) -> Iterator[tuple[int, str]]:
    """When modules begin and end, an outer one around those within it: times and names.

    An empty name ends the innermost one. What is recorded is the innermost module at work; which ones
    lie around it, their names tell.
    """
    known = module_names(rank, rank.segments.module)
    names = set(known.values()) - {""}
    opened: list[str] = []
    now_ns = 0
    for start_ns, end_ns, number in _runs(rank, rank.segments.module):
        path = _around(known[number], names)
        kept = 0
        while kept < min(len(path), len(opened)) and path[kept] == opened[kept]:
            kept += 1
        for _ in opened[kept:]:
            yield start_ns, ""
        for name in path[kept:]:
            yield start_ns, name
        opened, now_ns = path, end_ns
    for _ in opened:
        yield now_ns, ""


def module_names(rank: RankCapture, numbers: Array) -> dict[int, str]:
    """Qualified names of the modules whose numbers are in a column; empty for none."""
    return {number: rank.texts.module_name(number) for number in np.unique(numbers).tolist()}


def _around(name: str, names: set[str]) -> list[str]:
    """A module and those that it lies in, the outermost one first."""
    words = name.split(".")
    return [outer for at in range(1, len(words) + 1) if (outer := ".".join(words[:at])) in names]


def _runs(rank: RankCapture, value: Array) -> Iterator[tuple[int, int, int]]:
    """Start, end and value of each time in which a column of the segments stays as it is."""
    times = rank.blocks.time_ns
    if not len(times) or times[0] == times[-1]:
        return
    start = np.clip(rank.segments.start_ns, times[0], times[-1])
    end = np.append(start[1:], times[-1])
    there = np.flatnonzero(end > start)  # several marks may have been made at one time
    value, start, end = value[there], start[there], end[there]
    first = np.flatnonzero(np.append(True, value[1:] != value[:-1]))
    last = np.append(first[1:], len(value)) - 1
    yield from zip(start[first].tolist(), end[last].tolist(), value[first].tolist(), strict=True)
