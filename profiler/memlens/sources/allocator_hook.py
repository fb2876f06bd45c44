"""The CPU source: an allocator of our own that stands before torch's and notes each block.

It sees every thread, costs about a tenth of a microsecond per block (two with its Python stack), can
be drained at any moment, and does not collide with a profiler of the job. See
`native/allocator_hook.cpp`.

Not seen: memory that torch's CPU allocator does not hand out (shared memory of DataLoader workers,
mapped files, memory borrowed from NumPy) and `torch.UntypedStorage(n)`, which asks the built-in
allocator directly. What the observers see of them is reported as uncovered.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memlens.errors import SourceError
from memlens.recording.names import Names
from memlens.sources.base import EventBatch
from memlens.sources.native.build import build_hook
from memlens.sources.watch import Watch
from memlens.torch_private import storage_pointer

__all__ = ["AllocatorHookSource"]

_EVENT = np.dtype(
    [
        ("time_ns", np.int64),
        ("address", np.uint64),
        ("size_bytes", np.int64),
        ("stack", np.int32),
        ("thread", np.int32),
    ]
)
_FRAME = np.dtype([("code", np.uint64), ("place", np.int64)])
Array = npt.NDArray[Any]


@functools.cache
def _library() -> ctypes.CDLL:
    """The hook, loaded for the life of the process: blocks carry its deleter."""
    path = build_hook()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise SourceError(f"the allocator hook does not load: {error}") from error
    for name in ("memlens_drain", "memlens_stacks"):
        getattr(library, name).restype = ctypes.c_int64
    return library


class AllocatorHookSource:
    """Records torch's CPU allocator on all threads, with Python stacks on the one that starts it.

    Args:
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.

    Raises:
        SourceError: the hook can not be compiled or loaded here.
    """

    name = "cpu"
    devices: tuple[str, ...] = ("cpu",)
    device_type = "cpu"
    annotate: Callable[[int], None] | None = None
    drains_anywhere = True

    def __init__(self, names: Names, *, stack_depth: int) -> None:
        # Calls keep the GIL: a drain may read stacks while no thread can add one.
        self._library = ctypes.PyDLL(_library()._name)
        for name in ("memlens_drain", "memlens_stacks"):
            getattr(self._library, name).restype = ctypes.c_int64
        self.notes: list[str] = []
        self._names = names
        self._depth = stack_depth
        self._frames: dict[tuple[int, int], tuple[str, str, int]] = {}
        self._numbers = np.empty(0, np.int32)
        self._watch = Watch()

    def start(self) -> None:
        """Begin to record.

        Raises:
            SourceError: another allocator is in place that can not be followed.
        """
        if self._library.memlens_start(self._depth):
            raise SourceError(
                f"cannot follow the CPU allocator that is in place in torch {torch.__version__}; "
                "MEMLENS_CPU_SOURCE=profiler records by another way"
            )

    def existing(self) -> None:
        """The CPU's allocator keeps no list."""

    def header(self) -> dict[str, object]:
        """It has no settings either."""
        return {}

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage's memory comes from the allocator."""
        return bool(self._library.memlens_owns(ctypes.c_void_p(storage_pointer(storage))))

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Report the free of a block from before the session."""
        self._watch.add(storage)

    def drain(self) -> EventBatch:
        """Take the events so far."""
        first, total = ctypes.c_void_p(), ctypes.c_int64()
        count = self._library.memlens_drain(ctypes.byref(first), ctypes.byref(total))
        batch = EventBatch(census_frees=self._watch.take())
        if count:
            events = _view(first, count, _EVENT)
            batch.time_ns = events["time_ns"].copy()
            batch.address = events["address"].copy()
            batch.size_bytes = events["size_bytes"].copy()
            batch.allocator_total_bytes = {0: total.value}
            if self._depth:
                self._number_stacks()
                # Number -1 stands for no stack, and picks the last entry.
                batch.stack = np.append(self._numbers, np.int32(-1))[events["stack"]]
        return batch

    def stop(self) -> EventBatch:
        """Stop recording and take the events so far."""
        self._library.memlens_stop()
        batch = self.drain()
        self._watch.clear()
        return batch

    def abandon(self) -> None:
        """Drop everything; for a forked child."""
        self._library.memlens_abandon()
        self._watch.clear()

    def _number_stacks(self) -> None:
        frames, ends = ctypes.c_void_p(), ctypes.c_void_p()
        count = self._library.memlens_stacks(ctypes.byref(frames), ctypes.byref(ends))
        known = len(self._numbers)
        if count == known:
            return
        stack_ends = _view(ends, count, np.dtype(np.int64)).tolist()
        first_frame = stack_ends[known - 1] if known else 0
        rows = _view(frames, stack_ends[-1], _FRAME)[first_frame:].tolist()
        numbers = []
        begin = first_frame
        for end in stack_ends[known:]:
            number = -1
            # Innermost first in memory; a frame is numbered under the one that called it.
            for code, place in reversed(rows[begin - first_frame : end - first_frame]):
                number = self._names.frame(number, *self._frame(code, place))
            numbers.append(number)
            begin = end
        self._numbers = np.append(self._numbers, np.array(numbers, np.int32))

    def _frame(self, address: int, place: int) -> tuple[str, str, int]:
        frame = self._frames.get((address, place))
        if frame is None:
            code = ctypes.cast(address, ctypes.py_object).value
            assert isinstance(code, CodeType)
            name = getattr(code, "co_qualname", code.co_name)
            frame = self._frames[address, place] = (name, code.co_filename, _line(code, place))
        return frame


def _line(code: CodeType, place: int) -> int:
    if place < 0:
        return -1 - place
    for start, end, line in code.co_lines():
        if start <= place < end and line is not None:
            return line
    return code.co_firstlineno


def _view(pointer: ctypes.c_void_p, count: int, dtype: np.dtype[Any]) -> Array:
    """The library's own memory as an array; valid until its next call."""
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer.value or 0)
    array: Array = np.frombuffer(memoryview(memory), dtype, count)
    return array
