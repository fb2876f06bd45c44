"""What one rank recorded of one device: events, marks and tags, joined."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes, pair, witnessed_bytes
from memlens.attribution.rules import Attribution, attribute
from memlens.attribution.segments import Segments, segment
from memlens.attribution.workspaces import Workspaces
from memlens.disk.format import codes
from memlens.disk.reader import RankData
from memlens.events import Action, MarkKind

if TYPE_CHECKING:
    from memlens.allocator.follow import Followed
    from memlens.allocator.settings import AllocatorSettings

__all__ = ["DeviceHistory"]

Array = npt.NDArray[Any]
_MARK = codes(MarkKind)
_ACTION = codes(Action)
_BEGINS = [_ACTION["alloc"], _ACTION["census"]]
_CENSUS = [_ACTION["census"], _ACTION["segment_census"]]


class DeviceHistory:
    """Each part is worked out when it is first asked for.

    Args:
        data: what the rank recorded.
        device: position in its list of devices.
    """

    def __init__(self, data: RankData, device: int) -> None:
        self.data = data
        self.device = device

    def mark_times(self, kind: str) -> Array:
        """When marks of a kind were made, ascending."""
        marks = self.data.marks
        return np.sort(marks["time_ns"][marks["kind"] == _MARK[kind]])

    @cached_property
    def told(self) -> dict[str, Array]:
        """The device's events in the order of time, as they were recorded."""
        device, time = self.data.events["device"], self.data.events["time_ns"]
        if np.all(device == self.device) and np.all(time[:-1] <= time[1:]):
            return self.data.events  # as they are: a copy of many events takes much memory
        mine = np.flatnonzero(device == self.device)
        mine = mine[np.argsort(time[mine], kind="stable")]
        return {name: column[mine] for name, column in self.data.events.items()}

    @cached_property
    def followed(self) -> Followed | None:
        """What the allocator did, where it tells only what it was asked for; None: it tells all."""
        told = self.told
        begins = np.isin(told["action"], _BEGINS)
        if not np.any(begins & (told["allocated_bytes"] == 0) & (told["requested_bytes"] > 0)):
            return None
        from memlens.allocator.follow import follow

        return follow(told, self.settings)

    @property
    def settings(self) -> AllocatorSettings:
        """Of the allocator, as they were recorded."""
        from memlens.allocator.settings import AllocatorSettings

        return AllocatorSettings.from_snapshot(self.data.header.get("allocator") or {})

    @property
    def is_census(self) -> Array:
        """Which of `told` say what was there when recording began."""
        return np.isin(self.told["action"], _CENSUS)

    @cached_property
    def events(self) -> dict[str, Array]:
        """The events, with what the allocator set aside for each."""
        if self.followed is None:
            return self.told
        return {**self.told, "allocated_bytes": self.followed.allocated_bytes}

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit together, one sentence each."""
        if self.followed is None or not self.followed.mismatches or self.reserved is None:
            return ()
        return (
            f"{self.followed.mismatches} events do not fit what the allocator is known to hold; sizes "
            "of some blocks may be off by their rounding",
        )

    @cached_property
    def blocks(self) -> Lifetimes:
        """One row per block that was allocated."""
        return pair(self.events, self.mark_times("recording_on"), self.mark_times("recording_off"))

    @cached_property
    def running(self) -> Array:
        """Bytes allocated after each event of a block."""
        return self.blocks.running_bytes()

    def reserved_bytes(self, event: int, time_ns: int | None) -> int | None:
        """Bytes taken from the device; None: there are no segments.

        Args:
            event: the event of a block after which; -1: before all.
            time_ns: the moment, where one was asked for: segments come and go between such events.
        """
        if self.reserved is None:
            return None
        if time_ns is not None:
            row = int(np.searchsorted(self.told["time_ns"], time_ns, side="right")) - 1
        else:
            row = int(self.blocks.row[event]) if event >= 0 else -1
        return int(self.reserved[row]) if row >= 0 else 0

    @cached_property
    def reserved_peak_bytes(self) -> int | None:
        """Most bytes taken from the device; None: there are no segments."""
        return None if self.reserved is None else int(self.reserved.max(initial=0))

    @cached_property
    def reserved(self) -> Array | None:
        """Bytes taken from the device after each event, of segments or blocks."""
        action, size = self.told["action"], self.told["allocated_bytes"]
        grows = np.isin(
            action, [_ACTION[name] for name in ("segment_census", "segment_alloc", "segment_map")]
        )
        shrinks = np.isin(action, [_ACTION[name] for name in ("segment_free", "segment_unmap")])
        if not np.any(grows):
            return None
        change = np.where(grows, size, np.where(shrinks, -size, 0))
        reserved: Array = np.cumsum(change)
        # A census after a gap tells of all segments once more.
        is_census = action == _ACTION["segment_census"]
        begins = np.flatnonzero(is_census & ~np.append(False, is_census[:-1]))
        for begin in begins[1:].tolist():
            reserved[begin:] -= reserved[begin - 1]
        return reserved

    @cached_property
    def segments(self) -> Segments:
        """What the job did when."""
        return segment(self.data.marks, self.data.names)

    @cached_property
    def attribution(self) -> Attribution:
        """The category of each block, and why."""
        time = self.data.tags["time_ns"]
        on, off = self.mark_times("recording_on"), self.mark_times("recording_off")
        # What observers saw while the source did not record says nothing of what it recorded.
        recorded = np.searchsorted(on, time, side="right") > np.searchsorted(off, time, side="left")
        mine = (self.data.tags["device"] == self.device) & recorded
        tags = {name: column[mine] for name, column in self.data.tags.items()}
        return attribute(self.blocks, self.segments, tags, Workspaces.of(self.data.header))

    @cached_property
    def blind_ns(self) -> int:
        """Time between the first and the last stretch in which nothing was recorded."""
        on, off = self.mark_times("recording_on"), self.mark_times("recording_off")
        return int((on[1:] - off[: len(on) - 1]).sum()) if len(on) > 1 else 0

    @property
    def witnessed_bytes(self) -> Array:
        """After each event of a block, what the allocator itself should count since recording began."""
        return witnessed_bytes(self.events, self.mark_times("recording_on"))

    def witness_difference_bytes(self) -> int:
        """Largest difference between the allocator's own count and the events'."""
        marks, blocks = self.data.marks, self.blocks
        mine = (marks["kind"] == _MARK["allocator_total"]) & (
            np.maximum(marks["id"], 0) == self.device
        )
        if not self.data.header["closed"] and len(blocks.time_ns):
            # The mark stands before its events; the process may have been killed between the two.
            mine &= marks["time_ns"] <= blocks.time_ns[-1]
        if not np.any(mine) or not len(blocks.time_ns):
            return 0
        last = np.searchsorted(blocks.time_ns, marks["time_ns"][mine], side="right") - 1
        ours = np.where(last >= 0, self.witnessed_bytes[np.maximum(last, 0)], 0)
        return int(np.abs(ours - marks["value"][mine]).max())
