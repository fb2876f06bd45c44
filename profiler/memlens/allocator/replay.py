"""Replays the requests of a recorded history on the model of the allocator.

With the settings that were recorded, the model has to do what the real allocator did, entry by entry;
with others, it tells what the same job would have needed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator import pools
from memlens.allocator.addresses import DriverAddresses
from memlens.allocator.caching import CachingAllocator, OutOfDeviceMemory
from memlens.allocator.follow import Block, Followed, follow
from memlens.allocator.settings import AllocatorSettings
from memlens.events import Action

__all__ = ["Difference", "Replayed", "Shortage", "Totals", "replay"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
Step = tuple[str, int, int]
"""Action in torch's words, address and bytes."""

_NAME = [str(action.value) for action in Action]
_CENSUS = ("census", "segment_census")
_TAKES = ("segment_alloc", "segment_map")
_GIVES = ("segment_free", "segment_unmap")
FAR = 2**46
"""Above recorded addresses, and below those that a 64-bit process can have."""


@dataclass(frozen=True)
class Totals:
    """What a history came to."""

    reserved_peak_bytes: int
    allocated_peak_bytes: int
    segments: int
    """How many there are at the end; of an expandable one, each stretch that is mapped counts."""


@dataclass(frozen=True)
class Difference:
    """Where the model first does something else than was recorded."""

    event: int
    """Position in the history, of rows that are not of a census."""
    expected: Step | None
    """What was recorded; None: nothing more."""
    got: Step | None
    """What the model did; None: nothing more."""


@dataclass(frozen=True)
class Shortage:
    """The first request that the model could not serve."""

    event: int
    """As in `Difference`."""
    requested_bytes: int
    reserved_bytes: int
    allocated_bytes: int


@dataclass(frozen=True)
class Replayed:
    """What the model made of a history."""

    events: int
    """How many rows were replayed; those of a census do not count."""
    totals: Totals
    recorded: Totals | None
    """The same of the real allocator; None: the history tells of no segments."""
    is_compared: bool
    """It is known what the model has to do: the settings are those that were recorded, and so is what the
    real allocator took from the device."""
    first_difference: Difference | None
    """None: it does just that, or nothing is known of it."""
    out_of_memory: Shortage | None
    reserved_bytes: Array
    """After each row."""


def replay(
    columns: Columns,
    recorded: AllocatorSettings,
    settings: AllocatorSettings | None = None,
    capacity_bytes: int | None = None,
) -> Replayed:
    """Replay a history.

    A history does not tell why memory was given back. With the recorded settings and no capacity, the
    model gives back what the real allocator did. Else it decides for itself; what was given back counts
    as a call of `empty_cache`, unless the very next thing is that memory is taken or runs out: then the
    real allocator was short of it. After lost events, the model goes on from the census.

    One thing a late beginning does not tell: where the ranges of expandable segments begin. If memory was
    unmapped there before, the model may map other pages than the real allocator did.

    Args:
        columns: of one device, as for `follow`; a history that does not begin with the job begins with a
            census. Blocks outside of any segment (as in a history of the CPU's allocator) are requests
            like all others.
        recorded: the settings under which it was recorded.
        settings: the settings to replay it under; None: the same.
        capacity_bytes: what the device has; None: enough.
    """
    names = [_NAME[code] for code in columns["action"].tolist()]
    is_census = np.array([name in _CENSUS for name in names], bool)
    begins = np.flatnonzero(is_census & ~np.append(False, is_census[:-1])).tolist()
    begins = sorted({0, *begins})
    run = _Run(settings or recorded, capacity_bytes)
    run.decides = run.settings != recorded or capacity_bytes is not None
    if run.settings == recorded and not {"segment_census", *_TAKES}.isdisjoint(names):
        run.steps = deque()
    told = Totals(0, 0, 0)
    for begin, end in zip(begins, [*begins[1:], len(names)], strict=True):
        part = {name: column[begin:end] for name, column in columns.items()}
        head = int(is_census[begin:end].sum())
        known = follow(part, recorded)
        run.stretch(part, names[begin:end], known, head)
        allocated = _running_allocated(names[begin:end], known.allocated_bytes)
        told = Totals(
            max(told.reserved_peak_bytes, int(known.reserved_bytes.max(initial=0))),
            max(told.allocated_peak_bytes, int(allocated.max(initial=0))),
            len(known.state_after(end - begin - 1).segments),
        )
    run.finish()
    return Replayed(
        events=len(names) - int(is_census.sum()),
        totals=run.totals,
        recorded=told if told.reserved_peak_bytes else None,
        is_compared=run.steps is not None,
        first_difference=run.difference,
        out_of_memory=run.shortage,
        reserved_bytes=np.array(run.reserved, np.int64),
    )


def _below(addresses: list[int]) -> DriverAddresses | None:
    """Where the driver would put more; None: no driver has given addresses as low as these."""
    top = min(addresses, default=0)
    return DriverAddresses(top) if top > FAR // 4 else None


def _running_allocated(names: list[str], block_bytes: Array) -> Array:
    sign = {"alloc": 1, "census": 1, "free": -1, "free_requested": -1, "census_free": -1}
    return np.cumsum(np.array([sign.get(name, 0) for name in names], np.int64) * block_bytes)


class _Run:
    def __init__(self, settings: AllocatorSettings, capacity_bytes: int | None) -> None:
        self.settings = settings
        self.capacity_bytes = capacity_bytes
        self.model = CachingAllocator(settings, capacity_bytes, max_entries=0)
        self.steps: deque[tuple[int, Step]] | None = None
        """What was recorded, by event, and not yet seen of the model; None: nothing is expected of it."""
        self.decides = False
        """When memory is given back; else it is when the real allocator did."""
        self.offers: list[tuple[int, int, int]] = []
        """What the real allocator took since its last request: address, bytes, stream."""
        self.places: dict[int, int] = {}
        """Address that the model gave, by the one that was recorded; of what is in use."""
        self.waiting: dict[int, pools.Block] = {}
        """What was given back and waits for other streams, by the address that was recorded."""
        self.totals = Totals(0, 0, 0)
        self.difference: Difference | None = None
        self.shortage: Shortage | None = None
        self.reserved: list[int] = []
        self.events = 0

    def stretch(self, columns: Columns, names: list[str], known: Followed, head: int) -> None:
        """Begin with a census, and go on as recorded."""
        addresses, requested, streams = (
            columns[name].tolist() for name in ("address", "requested_bytes", "stream")
        )
        mirrors = self.steps is not None
        self.finish()  # of the stretch before
        self.model = CachingAllocator(
            self.settings,
            self.capacity_bytes,
            max_entries=None if mirrors else 0,
            first_address=-(-max(addresses, default=0) // FAR) * FAR or FAR,
            place=self._place if mirrors else _below(addresses),
        )
        state = known.state_after(head - 1)
        told = {
            addresses[row]: (requested[row], streams[row])
            for row in range(head)
            if names[row] == "census"
        }
        self.model.restore(
            state.segments,
            [
                Block(address, size, *told.get(address, (size, 0)))
                for address, size in state.blocks.items()
            ],
        )
        self.places = {address: address for address in self.model.blocks}
        self.waiting = {}
        for address, (size, stream) in told.items():
            if address not in self.places:  # it is in no segment
                self._request("alloc", address, size, stream)
        self.reserved += [self.model.reserved_bytes] * head
        previous = ""
        for row in range(head, len(names)):
            name, address, size, stream = names[row], addresses[row], requested[row], streams[row]
            if name in _TAKES:
                self.offers.append((address, size, stream))
            elif name not in _GIVES:
                self._request(name, address, size, stream)
            elif previous not in _GIVES:
                end = next(
                    (n for n in range(row, len(names)) if names[n] not in _GIVES), len(names)
                )
                follower = names[end] if end < len(names) else ""
                self._gives(names[row:end], addresses[row:end], requested[row:end], follower)
            previous = name
            self.reserved.append(self.model.reserved_bytes)
            if mirrors and self.difference is None:
                self._compare(name, address, size)
            self.events += 1

    def finish(self) -> None:
        """Take the model's figures."""
        model = self.model
        if self.difference is None and self.steps:
            self.difference = Difference(*self.steps[0], None)
        elif self.difference is None and model.history:
            self.difference = Difference(self.events, None, model.history[0][:3])
        self.totals = Totals(
            max(self.totals.reserved_peak_bytes, model.peak_reserved_bytes),
            max(self.totals.allocated_peak_bytes, model.peak_allocated_bytes),
            len(model.snapshot()["segments"]),
        )

    def _request(self, name: str, address: int, size: int, stream: int) -> None:
        model, places = self.model, self.places
        if name == "alloc" or (name == "out_of_memory" and self.decides):
            if name == "alloc" and address in places:  # its free was lost
                model.free(places.pop(address))
            try:
                got = model.malloc(size, stream)
            except OutOfDeviceMemory as error:
                if self.shortage is None:
                    self.shortage = Shortage(
                        self.events, size, error.reserved_bytes, error.allocated_bytes
                    )
            else:
                if name == "alloc":
                    places[address] = got
                else:  # for how long the job would have kept it is not known
                    model.free(got)
            self.offers.clear()
        elif name == "free_requested" and address in places:
            place = places.pop(address)
            model.record_stream(place, stream + 1)
            model.free(place)
            self.waiting[address] = model.pending[place]
        elif name in ("free", "census_free") and address in places:
            model.free(places.pop(address))
        elif name == "free_completed":
            block = self.waiting.pop(address, None)
            # Where the model ran out of memory, it has waited for the stream already.
            if block is not None and model.pending.get(block.address) is block:
                model.complete(block.address)

    def _gives(
        self, names: list[str], addresses: list[int], sizes: list[int], follower: str
    ) -> None:
        """The real allocator gives memory back, before something follows."""
        if self.decides:
            if follower not in (*_TAKES, "out_of_memory"):
                self.model.empty_cache()
        elif "segment_unmap" in names:
            self.model.empty_cache()
        else:
            for address, size in zip(addresses, sizes, strict=True):
                if self.model.is_cached(address, size):
                    self.model.give_back(address)

    def _place(self, size: int, stream: int) -> int | None:
        """Where the real allocator took it."""
        for address, offered, of in self.offers:
            if of == stream and (offered == size or self.settings.expandable_segments):
                return address
        return None

    def _compare(self, name: str, address: int, size: int) -> None:
        assert self.steps is not None
        if name == "free":
            self.steps.append((self.events, ("free_requested", address, size)))
            self.steps.append((self.events, ("free_completed", address, size)))
        elif name == "out_of_memory":
            if self.decides:
                self.steps.append((self.events, ("oom", 0, size)))
        elif name != "census_free":
            self.steps.append((self.events, (name, address, size)))
        while self.steps and self.model.history and self.difference is None:
            event, expected = self.steps.popleft()
            action, place, got_bytes, *_ = self.model.history.popleft()
            # Of running out, the address says how much the device had, which depends on others.
            got = (action, 0 if action == "oom" else place, got_bytes)
            if got != expected:
                self.difference = Difference(event, expected, got)
