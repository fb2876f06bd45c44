"""The CPU source: every block that torch's CPU allocator hands out, told by torch's own profiler.

The profiler keeps what it records until it is stopped, so a crash would lose it all. It is therefore
stopped and started again about twice a second, at moments when this thread is not inside the
autograd engine (the engine carries the profiler's state along with each graph, and would bring a
stopped profiler back). Between the two nothing is allocated on this thread: the garbage collector
is held for those microseconds.

Not seen: other threads of the job, shared memory of DataLoader workers, memory-mapped files and
tensors that borrow memory (`from_numpy`). What the observers see of them is reported as uncovered.
"""

from __future__ import annotations

import gc
import sys
import weakref
from operator import attrgetter
from time import time_ns
from typing import Any

import torch

from memlens import torch_private
from memlens.errors import SourceError
from memlens.names import Names
from memlens.sources.base import EventBatch
from memlens.sources.stacks import StackReader

__all__ = ["CpuSource", "check"]

_TIME = attrgetter("start_time_ns")
_FIELDS = attrgetter("extra_fields")
_BLOCK = attrgetter("ptr", "alloc_size")
_TRACE_TRIAL_NS = 2_000_000_000
"""Time with stacks after which their cost is judged."""


def check() -> list[str]:
    """What keeps this process from recording CPU allocations; empty when it can."""
    missing = torch_private.missing_profiler_features()
    if missing:
        return [f"this torch ({torch.__version__}) lacks {', '.join(missing)}"]
    return []


class CpuSource:
    """Records the CPU allocator on the thread that starts it.

    Stacks cost more than everything else: the profiler then follows every Python call. So they are
    recorded only from the first forward of a step to its end (`trace_calls`), which leaves out imports
    and data loading, and no longer at all once they have taken more time than the job itself.

    Args:
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.
    """

    name = "cpu"
    devices = ("cpu",)
    device_type = "cpu"

    def __init__(self, names: Names, *, stack_depth: int) -> None:
        problems = check()
        if problems:
            raise SourceError(f"cannot record CPU memory: {'; '.join(problems)}")
        self.notes: list[str] = []
        """What the capture lacks by intention, one sentence each."""
        if stack_depth and sys.getprofile() is not None:
            self.notes.append(
                "no stacks: another Python profiler is active (sys.setprofile), and recording "
                "them would switch it off"
            )
            stack_depth = 0
        self._plain = torch_private.MemoryProfiler(with_stack=False)
        self._tracing = torch_private.MemoryProfiler(with_stack=True)
        self._active = self._plain
        self._wanted = self._plain
        self._stacks = StackReader(names, stack_depth) if stack_depth else None
        self._trace_ns = self._trace_cost_ns = 0
        self._resumed_ns = 0
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._freed: list[tuple[int, int, int]] = []
        self._base_bytes: int | None = None

    def start(self) -> None:
        """Begin to record on this thread.

        Raises:
            SourceError: the job's own torch.profiler is running.
        """
        if torch_private.profiler_is_running():
            raise SourceError(
                "cannot record CPU memory while torch.profiler runs on this thread; "
                "stop it first, or start it inside the session (memlens then waits for it)"
            )
        self._base_bytes = None
        self._active = self._wanted
        self._resumed_ns = time_ns()
        self._active.enable()

    def trace_calls(self, on: bool) -> bool:
        """From the next drain on, record stacks or do not.

        Returns:
            Whether that is a change, so that a drain is due.
        """
        self._wanted = self._tracing if on and self._stacks is not None else self._plain
        return self._wanted is not self._active

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Report the free of a block from before the session, of which the profiler is silent.

        The profiler tells only of frees whose allocation it has seen. A weak reference to a storage
        is called back when its memory is released, also when autograd was the last to hold it.
        """
        address, size_bytes = storage.data_ptr(), storage.nbytes()

        def gone(_: object) -> None:
            self._watched.pop(address, None)
            self._freed.append((time_ns(), address, size_bytes))

        self._watched[address] = weakref.ref(storage, gone)

    def drain(self) -> EventBatch:
        """Take the events so far and go on; in between this thread allocates and frees nothing."""
        began = time_ns()
        collecting = gc.isenabled()
        gc.disable()
        try:
            try:
                # Read before it goes on: the profiler would record our own calls as well.
                batch = self._read(self._active.disable())
            finally:  # also when Ctrl-C arrives in between
                self._note_cost(began)
                self._active = self._wanted
                self._active.resume()
        finally:
            if collecting:
                gc.enable()
        return batch

    def stop(self) -> EventBatch:
        """Stop recording and take the events so far."""
        batch = self._read(self._active.disable())
        self._watched.clear()
        return batch

    def abandon(self) -> None:
        """Drop everything; for a forked child."""
        self._watched.clear()
        self._active.disable()

    def _note_cost(self, began_ns: int) -> None:
        now = time_ns()
        if self._active is self._tracing:
            self._trace_ns += began_ns - self._resumed_ns
            self._trace_cost_ns += now - began_ns
            if self._trace_ns > _TRACE_TRIAL_NS and self._trace_cost_ns > self._trace_ns:
                self._stacks, self._wanted = None, self._plain
                self.notes.append(
                    "no stacks after the first seconds: the job makes so many small calls that "
                    "recording them more than doubled its time"
                )
        self._resumed_ns = now

    def _read(self, result: Any) -> EventBatch:
        roots = result.experimental_event_tree()
        if self._active is self._tracing and self._stacks is not None:
            times, fields, stacks = self._stacks.read(roots)
        else:
            times, fields, stacks = list(map(_TIME, roots)), list(map(_FIELDS, roots)), None
        blocks = list(map(_BLOCK, fields))
        batch = EventBatch(
            times, [block[0] for block in blocks], [block[1] for block in blocks], stacks
        )
        if fields:
            if self._base_bytes is None:
                self._base_bytes = fields[0].total_allocated - blocks[0][1]
            batch.allocator_total_bytes = fields[-1].total_allocated - self._base_bytes
        batch.census_frees, self._freed = self._freed, []
        return batch
