"""The CUDA source: the history that torch's caching allocator keeps of itself, read before it wraps.

The history is a ring. Each drain copies it, together with a list of all blocks, and empties it. What
is in use must be what was in use before, more what was handed out, less what came back; where it is not,
entries were lost (the ring wrapped, or another thread was at work between copy and emptying), and
recording begins anew with a census, the loss counted.

Where the job records the history itself, it is read and never emptied: it belongs to the job.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Callable
from time import perf_counter_ns, time_ns
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memlens.allocator.rewind import starting_state
from memlens.allocator.settings import AllocatorSettings
from memlens.errors import SourceError
from memlens.recording.names import Names
from memlens.sources.base import Block, EventBatch, Gauge
from memlens.sources.cuda_facts import facts_of, is_private
from memlens.sources.cuda_history import History, OutOfMemoryCall, Seen
from memlens.sources.cuda_trace import (
    MARK_PREFIX,
    SEGMENT_ACTIONS,
    StackNumbers,
    Trace,
    active_requested_bytes,
    blocks_of,
    census_of,
)
from memlens.sources.cuda_workspaces import lt_workspace_bytes, workspace_bytes

__all__ = ["CudaSource"]

Array = npt.NDArray[Any]
Snapshot = dict[str, Any]

MAX_ENTRIES = 400_000
"""Entries of the ring; drains come at some 16,000."""
GAUGE_NS = 1_000_000_000
"""How often memory beside the allocator's is measured."""
SHARED_PAUSE = 30
"""A history that is not ours to empty is copied whole each time: rest so many times as long."""


class CudaSource:
    """Records torch's CUDA caching allocator, all devices, on all threads.

    Args:
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.
        history: what to read.

    Raises:
        SourceError: this torch keeps no history.
    """

    name = "cuda"
    drains_anywhere = True

    def __init__(self, names: Names, *, stack_depth: int, history: History) -> None:
        missing = history.missing()
        if missing:
            raise SourceError(
                f"cannot record CUDA memory: this torch ({torch.__version__}) lacks "
                f"{', '.join(missing)}; record the CPU with --device cpu"
            )
        self.history = history
        self.device_type = history.device_type
        self.devices: tuple[str, ...] = history.device_names() or ("cuda:0",)
        self.notes: list[str] = []
        self.is_shared = False
        """The job records the history, too: it is read and not emptied."""
        self._stacks = StackNumbers(names, stack_depth)
        self._with_stacks = stack_depth > 0
        self._begun = self._stopped = self._is_news = False
        self._withdraw: Callable[[], None] = _nothing
        self._settings: dict[str, Any] = {}
        self.on_out_of_memory: OutOfMemoryCall | None = None
        self._segments: list[dict[str, Any]] = []
        """What the allocator held at the last look."""
        self._existing: list[Block] = []
        self._late: list[Block] = []
        """What was there when a context came, after `start`."""
        self._base: dict[int, int] = {}
        """What was in use or pending on each device when recording began."""
        self._requested: dict[int, int] = {}
        self._calls: dict[int, int] = {}
        self._seen: defaultdict[int, Seen] = defaultdict(Seen)
        """How far each device's history was read."""
        self._rest_until_ns = 0
        self._gauge_ns = 0
        self._text_before = ""

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record, as soon as the job has made a CUDA context.

        Raises:
            SourceError: the allocator in use keeps no history.
        """
        self._stopped = False
        if self.history.is_ready():
            self._begin()
        else:
            self._withdraw = self.history.when_ready(self._begin_late)

    def _begin_late(self) -> None:
        # Called by torch: what we raise would end the job.
        try:
            if not self._stopped and not self._begun:
                self._begin()
                self._late = self._existing
        except Exception as error:
            self.notes.append(f"CUDA memory is not recorded: {error}")

    def _begin(self) -> None:
        backend = self.history.backend()
        if backend != "native":
            raise SourceError(
                f"the CUDA allocator in use, {backend}, keeps no history; "
                "take torch's own: unset backend in PYTORCH_CUDA_ALLOC_CONF"
            )
        self.is_shared = self.history.is_enabled()
        if self.is_shared:
            self.notes.append(
                "the job records the allocator's history itself; it was read and left to the job"
            )
        else:
            self.history.enable(MAX_ENTRIES, stacks=self._with_stacks)
        self.devices = self.history.device_names() or self.devices
        self._text_before = self.history.text()
        self.history.observe_out_of_memory(self._out_of_memory)
        snapshot = self.history.snapshot()
        self._settings = dict(snapshot.get("allocator_settings", {}))
        self._existing = self._take_stock(snapshot)
        self._begun = self._is_news = True

    def _take_stock(self, snapshot: Snapshot) -> list[Block]:
        """A snapshot is the beginning: its history is behind us, its blocks are the census."""
        segments = snapshot["segments"]
        for device, entries in enumerate(snapshot["device_traces"]):
            self._seen[device].note(entries)
            # What waits for a stream is in the census as well, and given back at once.
            self._base[device] = _total(segments, device, "active_size")
            self._requested[device] = active_requested_bytes(segments, device) or 0
            self._calls[device] = self.history.calls(device)
        return blocks_of(segments)

    def stop(self) -> EventBatch:
        """Stop recording and take the events so far."""
        self._stopped = True
        self._withdraw()
        if not self._begun:
            self.notes.append(
                "the job used no CUDA device, so nothing was recorded; --device cpu records the CPU's "
                "allocator"
            )
            return EventBatch()
        self._rest_until_ns = self._gauge_ns = 0
        try:
            batch = self.drain()
        finally:
            self._begun = False
            if not self.is_shared:
                self.history.disable()
            self.history.observe_out_of_memory(None)
            if self.history.set_text is not None:
                self.history.set_text(self._text_before)
        return batch

    def abandon(self) -> None:
        """Nothing: a forked child has no CUDA, and the parent's history is the parent's."""
        self._stopped, self._begun = True, False

    # -- out of memory -------------------------------------------------------------------------

    def _out_of_memory(self, device: int, requested: int, limit: int, free: int) -> None:
        self._rest_until_ns = 0
        if self.on_out_of_memory is not None:
            self.on_out_of_memory(device, requested, limit, free)

    def first_device(self) -> int:
        """A device that this process uses."""
        return min((segment["device"] for segment in self._segments), default=0)

    def facts(self, device: int) -> dict[str, Any]:
        """How the allocator stands on a device, as of the last drain; see `memlens.disk.oom`."""
        return {
            "device": self.devices[device],
            "device_index": device,
            "limit_bytes": self.history.limit_bytes(device),
            "allocator_settings": self._settings,
            **facts_of(self._segments, device),
        }

    # -- what the recorder asks ----------------------------------------------------------------

    @property
    def annotate(self) -> Callable[[int], None] | None:
        """Has events carry the number of their thread's last mark, where torch can do that."""
        return None if self.history.set_text is None else self._annotate

    def _annotate(self, number: int) -> None:
        # A job that records the history may have its own texts in it.
        if self._begun and not self.is_shared and self.history.set_text is not None:
            self.history.set_text(f"{MARK_PREFIX}{number}")

    def existing(self) -> list[Block]:
        """What the allocator held when recording began."""
        return self._existing

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage lies on a device that is recorded."""
        return storage.device.type == self.device_type

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Nothing: the allocator tells of every free."""

    def header(self) -> dict[str, object]:
        """The allocator's settings, without which block sizes can not be worked out."""
        return {
            "allocator": self._settings,
            "capacity_bytes": self._capacity_bytes(),
            "devices": list(self.devices),
            "workspaces": workspace_bytes(os.environ),
            "lt_workspace_bytes": lt_workspace_bytes(os.environ),
        }

    def _capacity_bytes(self) -> list[int] | None:
        """What the job may use of each device; None while that is not known."""
        try:
            if not torch.cuda.is_initialized():
                return None
            return [
                self.history.limit_bytes(number)
                or torch.cuda.get_device_properties(number).total_memory
                for number in range(len(self.devices))
            ]
        except (RuntimeError, AssertionError):  # a line in a chart is not worth a job's trouble
            return None

    # -- reading -------------------------------------------------------------------------------

    def drain(self) -> EventBatch:
        """Take the events so far."""
        began_ns = perf_counter_ns()
        if not self._begun or (self.is_shared and began_ns < self._rest_until_ns):
            return EventBatch()
        # A snapshot is ten thousands of small objects, which would have the collector look at all of the
        # job's again and again.
        collecting = gc.isenabled()
        gc.disable()
        try:
            batch = self._read()
        finally:
            if collecting:
                gc.enable()
        now = perf_counter_ns()
        self._rest_until_ns = now + SHARED_PAUSE * (now - began_ns)
        return batch

    def _read(self) -> EventBatch:
        entries: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        # The list of blocks and the history are two looks of torch's, and another thread may come in
        # between. So look again where they do not fit; the entries from before are taken by then.
        for _ in range(3):
            snapshot = self.history.snapshot()
            if not self.is_shared:
                self.history.enable(MAX_ENTRIES, stacks=self._with_stacks)
            for device, told in enumerate(snapshot["device_traces"]):
                entries[device] += self._seen[device].newer(told)
                if self.is_shared:
                    self._seen[device].note(told)
            if not self.is_shared:
                self._seen.clear()
            traces = [Trace(entries[device]) for device in range(len(snapshot["device_traces"]))]
            if self._is_whole(traces, snapshot["segments"]):
                break
        self._segments = snapshot["segments"]
        return self._batch(traces, snapshot)

    def adopt(self) -> None:
        """The job has just begun or ended to record the history itself; what there was is drained."""
        if not self._begun:
            return
        self.is_shared = self.history.is_enabled()
        if not self.is_shared:  # the job is done with it
            self.history.enable(MAX_ENTRIES, stacks=self._with_stacks)
        elif self.history.set_text is not None:
            self.history.set_text(self._text_before)
        for device, entries in enumerate(self.history.snapshot()["device_traces"]):
            self._seen[device].note(entries)
        self._rest_until_ns = 0

    def _is_whole(self, traces: list[Trace], segments: list[dict[str, Any]]) -> bool:
        for device, trace in enumerate(traces):
            now = active_requested_bytes(segments, device)
            if now is not None and now != self._requested.get(device, 0) + (
                trace.net_requested_bytes()
            ):
                return False
        return True

    def _batch(self, traces: list[Trace], snapshot: Snapshot) -> EventBatch:
        segments = snapshot["segments"]
        batch = EventBatch(gauges=self._gauges(segments))
        if self._is_news:  # devices and settings are known only now
            self._is_news, batch.header = False, self.header()
        whole = self._is_whole(traces, segments)
        late, self._late = self._late, []
        if not whole or late:
            for device, trace in enumerate(traces):
                missed = self.history.calls(device) - self._calls.get(device, 0) - trace.calls
                batch.lost_events += max(0, missed)
        if not whole:
            late, traces = self._recover(traces, snapshot)
        batch.census = late
        total = {}
        for device, trace in enumerate(traces):
            self._requested[device] = self._requested.get(device, 0) + trace.net_requested_bytes()
            self._calls[device] = self._calls.get(device, 0) + trace.calls
            if len(trace.action):
                now = _total(segments, device, "allocated_size")
                total[device] = now - self._base.get(device, 0)
        batch.allocator_total_bytes = total
        _fill(batch, [trace.without_empty_waits() for trace in traces], self._stacks)
        return batch

    def _recover(self, traces: list[Trace], snapshot: Snapshot) -> tuple[list[Block], list[Trace]]:
        """What there was when the part of the history began that is left, and that part."""
        census: list[Block] = []
        settings = AllocatorSettings.from_snapshot(self._settings)
        for device, trace in enumerate(traces):
            mine = [each for each in snapshot["segments"] if each["device"] == device]
            columns = {
                "action": trace.action,
                "address": trace.address,
                "requested_bytes": trace.size_bytes,
                "stream": trace.stream,
            }
            segments, blocks = starting_state(columns, mine, settings)
            requested = sum(block.requested_bytes for block in blocks)
            if requested + trace.net_requested_bytes() != active_requested_bytes(mine, device):
                # That does not add up; what is there at the end is known in any case.
                return self._take_stock(snapshot), [Trace(()) for _ in traces]
            self._requested[device] = requested
            self._base[device] = sum(each.size_bytes for each in blocks)
            self._calls[device] = self.history.calls(device) - trace.calls
            census += census_of(device, segments, blocks)
        return census, traces

    def _gauges(self, segments: list[dict[str, Any]]) -> list[Gauge]:
        now = time_ns()
        if now - self._gauge_ns < GAUGE_NS or self.history.is_capturing():
            return []
        self._gauge_ns = now
        gauges: list[Gauge] = []
        # Of other devices we do not ask: the question would make a context there.
        for device in sorted({segment["device"] for segment in segments}):
            name = self.devices[device]
            free, total = self.history.device_memory(device)
            gauges.append(("device memory in use", name, total - free))
            private = sum(
                segment["total_size"]
                for segment in segments
                if segment["device"] == device and is_private(segment)
            )
            if private:
                gauges.append(("private pools", name, private))
        pinned = self.history.pinned_bytes()
        if pinned:
            gauges.append(("pinned host memory", "", pinned))
        return gauges


def _fill(batch: EventBatch, traces: list[Trace], stacks: StackNumbers) -> None:
    """Put the traces of all devices into one batch."""
    numbers = [stacks.of(trace.entries) for trace in traces]
    batch.stack = np.concatenate(numbers) if numbers else None
    for name in ("action", "address", "stream", "mark", "time_ns", "size_bytes"):
        setattr(batch, name, np.concatenate([getattr(trace, name) for trace in traces]))
    batch.device = np.concatenate(
        [np.full(len(trace.action), device, np.int8) for device, trace in enumerate(traces)]
    )
    assert batch.action is not None
    # How much the allocator sets aside depends on what is free; worked out when the capture is read.
    is_segment = np.isin(batch.action, SEGMENT_ACTIONS)
    batch.allocated_bytes = np.where(is_segment, batch.size_bytes, 0)


def _total(segments: list[dict[str, Any]], device: int, key: str) -> int:
    return sum(segment[key] for segment in segments if segment["device"] == device)


def _nothing() -> None:
    return None
