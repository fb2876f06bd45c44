"""Pairs allocations with frees: an address is reused, so identity is (device, address, lifetime)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.disk.format import codes
from memlens.events import Action

__all__ = ["Lifetimes", "pair"]

Array = npt.NDArray[Any]

_ACTION = codes(Action)
FOREVER = np.iinfo(np.int64).max
_OF_BLOCKS = [
    _ACTION[name] for name in ("alloc", "free", "free_requested", "census", "census_free")
]
"""The others tell of segments, or of when a block that was given back can be handed out again."""


@dataclass(frozen=True)
class Lifetimes:
    """One row per block, ordered by allocation, and the events in order of time."""

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
    witnessed_bytes: Array
    """Running total of the events that the allocator itself counts, since recording began."""
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
    order = np.flatnonzero(np.isin(events["action"], _OF_BLOCKS))
    order = order[np.argsort(events["time_ns"][order], kind="stable")]
    time = events["time_ns"][order]
    action = events["action"][order]
    address = events["address"][order]
    size = events["allocated_bytes"][order]
    count = len(time)
    is_census = action == _ACTION["census"]
    is_begin = is_census | (action == _ACTION["alloc"])
    interval = np.maximum(np.searchsorted(on_ns, time, side="right") - 1, 0)

    # In the order of (stretch, address, time), begin and end of a lifetime are neighbours.
    by_block = (
        np.lexsort((address, interval)) if len(on_ns) > 1 else np.argsort(address, kind="stable")
    )
    begins = is_begin[by_block]
    same_as_next = np.zeros(count, bool)
    if count > 1:
        same_as_next[:-1] = (address[by_block][:-1] == address[by_block][1:]) & (
            interval[by_block][:-1] == interval[by_block][1:]
        )
    next_begins = np.append(begins[1:], False)
    same_as_previous = np.append(False, same_as_next[:-1])
    previous_begins = np.append(False, begins[:-1]) & same_as_previous

    opened = by_block[begins]
    follower = np.append(by_block[1:], count)[begins]
    ended = np.where(same_as_next[begins], follower, count)
    # Two allocations in a row at one address: the free between them is missing. If the first is of
    # the census, it merely says that the block was there, which the second knows better.
    overrun = same_as_next[begins] & next_begins[begins]
    lost = int(np.count_nonzero(overrun & ~is_census[opened]))
    # A free that ends nothing: its allocation is missing, unless the block's owner told it as well.
    # The first event at an address may free a block from before that the census could not see (an
    # earlier session knew it); were an allocation lost instead, the allocator's total would tell.
    orphan = ~begins & ~previous_begins
    is_told = action[by_block] == _ACTION["census_free"]
    told_twice = np.append(False, is_told[:-1])
    lost += int(np.count_nonzero(orphan & same_as_previous & ~told_twice & ~is_told))

    chronological = np.argsort(opened, kind="stable")
    first, last = opened[chronological], ended[chronological]
    closes = last < count
    free_ns = np.full(len(first), FOREVER)
    free_ns[closes] = time[last[closes]]

    # What is alive when recording stops is out of sight; the next stretch has its own census.
    if len(on_ns) > 1:
        bounds = np.searchsorted(time, on_ns[1:], side="left")
        cut = ~closes & (interval[first] < len(on_ns) - 1)
        stretch = interval[first][cut]
        last = last.copy()
        last[cut] = bounds[stretch]
        free_ns[cut] = off_ns[np.minimum(stretch, len(off_ns) - 1)] if len(off_ns) else time[-1]

    raw = np.where(is_begin, size, -size)
    raw[is_census | (action == _ACTION["census_free"])] = 0
    running = np.cumsum(raw)
    if count and len(on_ns) > 1:
        starts = np.searchsorted(time, on_ns, side="left")
        base = np.where(starts > 0, running[np.maximum(starts - 1, 0)], 0)
        running = running - base[interval]
    return Lifetimes(
        time_ns=time,
        row=order,
        first=first,
        last=last,
        alloc_ns=time[first],
        free_ns=free_ns,
        address=address[first],
        size_bytes=size[first],
        requested_bytes=events["requested_bytes"][order][first],
        stack=events["stack"][order][first],
        preexisting=is_census[first],
        interval=interval[first],
        witnessed_bytes=running,
        lost_events=lost,
    )
