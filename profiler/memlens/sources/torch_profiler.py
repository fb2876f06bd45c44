"""The CPU source where nothing can be compiled: memory events of torch's own profiler.

The profiler keeps what it records until it is stopped, so a crash would lose it all. It is therefore
stopped and started again about twice a second, at moments when this thread is not inside the
autograd engine (the engine carries the profiler's state along with each graph, and would bring a
stopped profiler back). Between the two nothing is allocated on this thread: the garbage collector
is held for those milliseconds.

Beyond what the allocator hook does not see, this one misses what other threads of the job allocate and
free (a buffer that a communication thread frees seems to live on), and knows no stacks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch

from memlens import torch_private
from memlens.errors import SourceError
from memlens.sources.base import EventBatch
from memlens.sources.watch import Watch

__all__ = ["TorchProfilerSource", "check"]

_TIME = attrgetter("start_time_ns")
_FIELDS = attrgetter("extra_fields")
_BLOCK = attrgetter("ptr", "alloc_size", "total_allocated")
_Event = tuple[int, tuple[int, int, int]]
"""Time; address, bytes and the allocator's total after it."""


def check() -> list[str]:
    """What keeps this source from working here; empty when it can."""
    missing = torch_private.missing_profiler_features()
    if missing:
        return [f"this torch ({torch.__version__}) lacks {', '.join(missing)}"]
    return []


class TorchProfilerSource:
    """Records the CPU allocator on the thread that starts it."""

    name = "cpu"
    devices: tuple[str, ...] = ("cpu",)
    device_type = "cpu"
    annotate: Callable[[int], None] | None = None
    drains_anywhere = False

    def __init__(self) -> None:
        problems = check()
        if problems:
            raise SourceError(f"cannot record CPU memory: {'; '.join(problems)}")
        self.notes: list[str] = [
            "recorded by torch's profiler: without stacks, and without other threads of the job"
        ]
        self._profiler = torch_private.MemoryProfiler()
        self._watch = Watch()
        self._base_bytes: int | None = None
        self._total_bytes = 0

    def start(self) -> None:
        """Begin to record on this thread.

        Raises:
            SourceError: the job's own torch.profiler is running.
        """
        if torch_private.profiler_is_running():
            raise SourceError(
                "cannot record CPU memory by torch's profiler while the job's own runs; "
                "stop it first, or start it inside the session (memlens then waits for it)"
            )
        self._base_bytes = None
        self._profiler.enable()

    def existing(self) -> None:
        """The CPU's allocator keeps no list."""

    def header(self) -> dict[str, object]:
        """It has no settings either."""
        return {}

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage's memory comes from the allocator.

        Borrowed, mapped and shared memory can not be resized. Nor can a tensor's that the job has once
        looked at as a NumPy array: what the session finds of those is reported as uncovered.
        """
        return storage.resizable() and not storage.is_shared()

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Report the free of a block from before the session."""
        self._watch.add(storage)

    def drain(self) -> EventBatch:
        """Take the events so far and go on; in between this thread allocates and frees nothing."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            try:
                result = self._profiler.disable()
            finally:  # also when Ctrl-C arrives in between
                self._profiler.resume()
        finally:
            if collecting:
                gc.enable()
        return self._read(result)

    def stop(self) -> EventBatch:
        """Stop recording and take the events so far."""
        batch = self._read(self._profiler.disable())
        self._watch.clear()
        return batch

    def abandon(self) -> None:
        """Drop everything; for a forked child."""
        self._watch.clear()
        self._profiler.disable()

    def _read(self, result: Any) -> EventBatch:
        roots = result.experimental_event_tree()
        fields = list(map(_FIELDS, roots))
        events = list(zip(map(_TIME, roots), map(_BLOCK, fields), strict=True))
        events = self._without_mapped(events)
        batch = EventBatch(
            time_ns=[time for time, _ in events],
            address=[block[0] for _, block in events],
            size_bytes=[block[1] for _, block in events],
            census_frees=self._watch.take(),
        )
        if events:
            first, last = events[0][1], events[-1][1]
            if self._base_bytes is None:
                self._base_bytes = first[2] - first[1]
            batch.allocator_total_bytes = {0: last[2] - self._base_bytes}
        return batch

    def _without_mapped(self, events: list[_Event]) -> list[_Event]:
        """Leave out shared and mapped memory: the profiler tells of it, the allocator does not.

        The batches of DataLoader workers arrive that way. Such an event claims that the allocator's
        total is 0, which does not fit the events of its own around it.
        """
        kept: list[_Event] = []
        expected = self._total_bytes
        for event in events:
            _, size_bytes, total = event[1]
            if total == 0 and expected + size_bytes != 0:
                continue
            expected = total
            kept.append(event)
        self._total_bytes = expected
        return kept
