"""Pairs allocations with frees: an address is reused, so identity is (device, address, lifetime)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.disk.format import codes
from memlens.events import Action

__all__ = ["Lifetimes", "pair", "witnessed_bytes"]

Array = npt.NDArray[Any]

_ACTION = codes(Action)
FOREVER = np.iinfo(np.int64).max
_OF_BLOCKS = np.isin(
    np.arange(len(Action)),
    [_ACTION[name] for name in ("alloc", "free", "free_requested", "census", "census_free")],
)
"""By action. The others tell of segments, or of when a block that was given back can be handed out
again."""


@dataclass(frozen=True)
class Lifetimes:
    """One row per block, ordered by allocation, and the events in order of time.

    A capture may have tens of millions of events, so positions among them take four bytes where that
    is enough, and columns that need not be copied are those of the events themselves.
    """

    time_ns: Array
    """Of each event that begins or ends a lifetime, ascending."""
    row: Array
    """Which of the events that were given it is."""
    first: Array
    """Event that begins each lifetime."""
    last: Array
    """Event that ends it, or the number of events when none does."""
    alloc_ns: Array
    free_ns: Array
    """FOREVER when nothing frees it."""
    address: Array
    size_bytes: Array
    """What the allocator set aside."""
    requested_bytes: Array
    stack: Array
    preexisting: Array
    """It was there before recording began."""
    interval: Array
    """In which stretch of recording it lies."""
    lost_events: int
    """Allocations and frees that must have happened and have no event."""

    def running_bytes(self, chosen: Array | None = None) -> Array:
        """Bytes allocated after each event, of all lifetimes or of the chosen ones (a mask)."""
        first, last, size = self.first, self.last, self.size_bytes
        if chosen is not None:
            first, last, size = first[chosen], last[chosen], size[chosen]
        delta = np.zeros(len(self.time_ns), np.int64)
        delta[first] = size  # an event begins one lifetime at most
        ends = last < len(delta)
        np.subtract.at(delta, last[ends], size[ends])
        return np.cumsum(delta, out=delta)


def pair(events: dict[str, Array], on_ns: Array, off_ns: Array) -> Lifetimes:
    """Pair the events of one device.

    Args:
        events: columns as on disk.
        on_ns: when recording began, once per stretch.
        off_ns: when it ended; one fewer when it never did.
    """
    order, columns = _of_blocks(events)
    time, address = columns["time_ns"], columns["address"]
    count = len(time)
    positions = np.int32 if count < 2**31 else np.int64
    is_census = columns["action"] == _ACTION["census"]
    is_begin = is_census | (columns["action"] == _ACTION["alloc"])
    interval = _stretch_of(on_ns, time)

    # In the order of (stretch, address, time), begin and end of a lifetime are neighbours.
    by_block = (
        np.lexsort((address, interval)) if len(on_ns) > 1 else np.argsort(address, kind="stable")
    ).astype(positions)
    begins = is_begin[by_block]
    same_as_next = np.zeros(count, bool)
    for column in (address,) if len(on_ns) < 2 else (address, interval):
        in_order = column[by_block]
        differs = in_order[:-1] != in_order[1:]
        same_as_next[:-1] |= differs
        del in_order
    same_as_next[:-1] = ~same_as_next[:-1]
    next_begins = np.append(begins[1:], False)
    same_as_previous = np.append(False, same_as_next[:-1])
    previous_begins = np.append(False, begins[:-1]) & same_as_previous

    opened = by_block[begins]
    ended = np.append(by_block[1:], positions(count))[begins]
    ended[~same_as_next[begins]] = count
    # Two allocations in a row at one address: the free between them is missing. If the first is of
    # the census, it merely says that the block was there, which the second knows better.
    overrun = same_as_next[begins] & next_begins[begins]
    lost = int(np.count_nonzero(overrun & ~is_census[opened]))
    # A free that ends nothing: its allocation is missing, unless the block's owner told it as well.
    # The first event at an address may free a block from before that the census could not see (an
    # earlier session knew it); were an allocation lost instead, the allocator's total would tell.
    orphan = ~begins & ~previous_begins
    is_told = columns["action"][by_block] == _ACTION["census_free"]
    told_twice = np.append(False, is_told[:-1])
    lost += int(np.count_nonzero(orphan & same_as_previous & ~told_twice & ~is_told))
    del by_block

    chronological = np.argsort(opened, kind="stable")
    first, last = opened[chronological], ended[chronological]
    del opened, ended, chronological
    closes = last < count
    free_ns = np.full(len(first), FOREVER)
    free_ns[closes] = time[last[closes]]

    # What is alive when recording stops is out of sight; the next stretch has its own census.
    if len(on_ns) > 1:
        bounds = np.searchsorted(time, on_ns[1:], side="left")
        cut = ~closes & (interval[first] < len(on_ns) - 1)
        stretch = interval[first][cut]
        last[cut] = bounds[stretch]
        free_ns[cut] = off_ns[np.minimum(stretch, len(off_ns) - 1)] if len(off_ns) else time[-1]
    return Lifetimes(
        time_ns=time,
        row=order,
        first=first,
        last=last,
        alloc_ns=time[first],
        free_ns=free_ns,
        address=address[first],
        size_bytes=columns["allocated_bytes"][first],
        requested_bytes=columns["requested_bytes"][first],
        stack=columns["stack"][first],
        preexisting=is_census[first],
        interval=interval[first],
        lost_events=lost,
    )


def witnessed_bytes(events: dict[str, Array], on_ns: Array) -> Array:
    """Running total of the events that the allocator itself counts, since recording began.

    Args:
        events: columns as on disk; one entry for each that begins or ends a lifetime comes back.
        on_ns: when recording began, once per stretch.
    """
    _, columns = _of_blocks(events)
    time, action = columns["time_ns"], columns["action"]
    is_begin = (action == _ACTION["alloc"]) | (action == _ACTION["census"])
    raw = np.where(is_begin, columns["allocated_bytes"], -columns["allocated_bytes"])
    raw[(action == _ACTION["census"]) | (action == _ACTION["census_free"])] = 0
    running: Array = np.cumsum(raw, out=raw)
    if len(time) and len(on_ns) > 1:
        starts = np.searchsorted(time, on_ns, side="left")
        base = np.where(starts > 0, running[np.maximum(starts - 1, 0)], 0)
        running -= base[_stretch_of(on_ns, time)]
    return running


def _of_blocks(events: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Which events begin or end lifetimes, in the order of time, and their columns."""
    count = len(events["time_ns"])
    positions = np.int32 if count < 2**31 else np.int64
    time, chosen = events["time_ns"], _OF_BLOCKS[events["action"]]
    if np.all(chosen) and np.all(time[:-1] <= time[1:]):
        return np.arange(count, dtype=positions), events
    order = np.flatnonzero(chosen).astype(positions)
    order = order[np.argsort(time[order], kind="stable")]
    used = ("time_ns", "action", "address", "allocated_bytes", "requested_bytes", "stack")
    return order, {name: events[name][order] for name in used}


def _stretch_of(on_ns: Array, time_ns: Array) -> Array:
    """In which stretch of recording each time lies."""
    if len(on_ns) < 2:
        return np.zeros(len(time_ns), np.int16)
    found = np.maximum(np.searchsorted(on_ns, time_ns, side="right") - 1, 0)
    return found.astype(np.int16 if len(on_ns) < 2**15 else np.int64)
