"""The source of a simulation: what the model of the allocator did for tensors without data."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from memlens.disk.format import codes
from memlens.events import Action
from memlens.recording.names import Names
from memlens.simulation.process import Simulated
from memlens.sources.base import Block, EventBatch, Gauge
from memlens.sources.cuda_workspaces import lt_workspace_bytes, workspace_bytes

__all__ = ["SimulatedSource"]

_ACTION = codes(Action) | {"oom": codes(Action)["out_of_memory"]}
_FREE, _REQUESTED, _COMPLETED = (
    _ACTION[name] for name in ("free", "free_requested", "free_completed")
)
_SEGMENTS = [code for name, code in _ACTION.items() if name.startswith("segment_")]
_HIDDEN = (
    "memlens.simulation",
    "memlens.sources.simulated",
    "torch._subclasses",
    "torch.overrides",
)
"""Modules whose frames a real job would not have."""


class SimulatedSource:
    """Records the simulated device. Its clock is the marks' own.

    Args:
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.
        simulated: what simulates this process.
    """

    name = "simulated"
    devices: tuple[str, ...] = ("cuda:0",)
    device_type = "cuda"
    annotate: Callable[[int], None] | None = None
    drains_anywhere = True

    def __init__(self, names: Names, *, stack_depth: int, simulated: Simulated) -> None:
        self.notes: list[str] = []
        self._names = names
        self._depth = stack_depth
        self._simulated = simulated
        self._memory = simulated.memory
        self._begin_bytes = 0
        self._frames: dict[tuple[CodeType, int, int], int] = {}
        self._hidden: dict[CodeType, bool] = {}
        self._existing: list[Block] = []

    def start(self) -> None:
        """Begin to record."""
        allocator = self._memory.allocator
        self._existing = self._memory.blocks()
        self._begin_bytes = allocator.allocated_bytes
        allocator.history.clear()
        allocator.keeps_history = True
        if self._depth:
            self._memory.stack = self._stack

    def drain(self) -> EventBatch:
        """Take the events so far; none while the allocator is at work."""
        # The heartbeat may come in the middle of an allocation, on the thread that holds the lock.
        if not self._memory.lock.acquire(blocking=False):
            return EventBatch()
        try:
            return self._take()
        finally:
            self._memory.lock.release()

    def _take(self) -> EventBatch:
        """The events so far; the lock is held."""
        allocator = self._memory.allocator
        self._memory.settle()
        entries = list(allocator.history)
        allocator.history.clear()
        total_bytes = allocator.allocated_bytes - self._begin_bytes
        large_bytes, pinned_bytes = self._simulated.host.peaks()
        gauges: list[Gauge] = [("host tensors, the large ones", "", large_bytes)]
        gauges.append(("pinned host memory", "", pinned_bytes))
        gauges = [each for each in gauges if each[2]]
        if not entries:
            return EventBatch(gauges=gauges)
        names, addresses, sizes, streams, times, stacks, _ = zip(*entries, strict=True)
        columns: dict[str, Any] = {
            "action": np.array([_ACTION[name] for name in names], np.int8),
            "address": np.array(addresses, np.uint64),
            "size_bytes": np.array(sizes, np.int64),
            "stream": np.array(streams, np.int64),
            "time_ns": np.array(times, np.int64),
            "stack": np.array([each[0] if each else -1 for each in stacks], np.int32),
        }
        action = columns["action"]
        # A free that no other stream delays is completed at once, and is one row.
        at_once = np.append(
            (action[:-1] == _REQUESTED)
            & (action[1:] == _COMPLETED)
            & (columns["address"][:-1] == columns["address"][1:]),
            False,
        )
        action[at_once] = _FREE
        keep = ~np.append(False, at_once[:-1])
        columns = {name: column[keep] for name, column in columns.items()}
        is_alloc = columns["action"] == _ACTION["alloc"]
        columns["stack"][~is_alloc] = -1
        is_segment = np.isin(columns["action"], _SEGMENTS)
        return EventBatch(
            **columns,
            # As with a real allocator, block sizes are worked out when the capture is read.
            allocated_bytes=np.where(is_segment, columns["size_bytes"], 0),
            allocator_total_bytes={0: total_bytes},
            gauges=gauges,
        )

    def stop(self) -> EventBatch:
        """Stop recording and take the events so far."""
        with self._memory.lock:
            batch = self._take()
            self._memory.allocator.keeps_history = False
            self._memory.stack = None
        return batch

    def existing(self) -> list[Block]:
        """What the allocator had handed out when `start` was called."""
        return self._existing

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage lies on the simulated device."""
        return bool(self._memory.address(storage))

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Nothing: the allocator tells of every free."""

    def header(self) -> dict[str, object]:
        """The allocator's settings, and sizes of workspaces."""
        return {
            "allocator": self._simulated.settings,
            "capacity_bytes": [self._memory.total_bytes],
            "workspaces": workspace_bytes(os.environ),
            "lt_workspace_bytes": lt_workspace_bytes(os.environ),
        }

    def abandon(self) -> None:
        """Stop recording in a forked child."""
        self._memory.allocator.keeps_history = False
        self._memory.stack = None

    # -- stacks --------------------------------------------------------------------------------

    def _stack(self) -> int:
        """Number of the innermost frame, of those that a real job would have."""
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and len(frames) < self._depth:
            if not self._is_hidden(frame):
                frames.append(frame)
            frame = frame.f_back
        number = -1
        known = self._frames
        for frame in reversed(frames):
            key = (frame.f_code, frame.f_lineno, number)
            found = known.get(key)
            if found is None:
                code = frame.f_code
                name = getattr(code, "co_qualname", code.co_name)
                found = self._names.frame(number, name, code.co_filename, frame.f_lineno)
                known[key] = found
            number = found
        return number

    def _is_hidden(self, frame: FrameType) -> bool:
        code = frame.f_code
        hidden = self._hidden.get(code)
        if hidden is None:
            module = str(frame.f_globals.get("__name__", ""))
            hidden = self._hidden[code] = module.startswith(_HIDDEN)
        return hidden
