"""Every private name of torch that memlens touches, and why.

Each is looked up by feature, so that a torch that lacks one gives a clear answer instead of an
AttributeError in the middle of a training. Seen in torch 2.9 to 2.13.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch

__all__ = [
    "MemoryProfiler",
    "backward_engine_code",
    "backward_engine_owner",
    "job_profiler_owner",
    "loader_iterator_class",
    "missing_profiler_features",
    "node_number",
    "optimizer_step_code",
    "profiler_is_running",
    "storage_pointer",
]

_PROFILER_NAMES = (
    ("torch._C._autograd", "_prepare_profiler"),
    ("torch._C._autograd", "_enable_profiler"),
    ("torch._C._autograd", "_disable_profiler"),
    ("torch._C._autograd", "_profiler_enabled"),
    ("torch._C._profiler", "ProfilerConfig"),
    ("torch._C._profiler", "ProfilerState"),
    ("torch._C._profiler", "ProfilerActivity"),
    ("torch._C._profiler", "RecordScope"),
    ("torch._C._profiler", "_ExperimentalConfig"),
)

_ERROR = 2
"""Level of torch's C++ log above warnings."""


def _lookup(path: str) -> Any:
    value: Any = torch
    for part in path.split(".")[1:]:
        value = getattr(value, part, None)
    return value


def missing_profiler_features() -> list[str]:
    """Names that `MemoryProfiler` needs and this torch lacks; empty when it can work."""
    missing = [
        f"{module}.{name}" for module, name in _PROFILER_NAMES if not hasattr(_lookup(module), name)
    ]
    if not torch.profiler.kineto_available():
        missing.append("Kineto (this torch was built without it)")
    return missing


def profiler_is_running() -> bool:
    """Whether a profiler of torch (ours or the job's) records on this thread."""
    return bool(torch._C._autograd._profiler_enabled())


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    # Kineto reads this once, when its first trace starts; without it each of our drains would
    # print a line to the job's stderr.
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99" if before is None else before
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep torch's C++ log from printing warnings that are about us into the job's stderr.

    * When a profiled process frees a block from before, the CPU allocator prints "Memory block of
      unknown size", for the first such block of a process and for every 1000th. We know of these
      blocks and count their frees ourselves, so the first warning is provoked here, unheard.
    * A profiler that did not hand its events to Kineto says when it stops that Kineto lacks them.
    """
    level = _log_level()
    before, level.value = level.value, max(level.value, _ERROR)
    try:
        yield
    finally:
        level.value = before


@cache
def _log_level() -> ctypes.c_int:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        return ctypes.c_int.in_dll(library, "FLAGS_caffe2_log_level")
    except (OSError, ValueError):  # another build of torch, which will print its lines
        return ctypes.c_int()


class MemoryProfiler:
    """torch's own profiler, told to record allocations and nothing else.

    `torch.profiler` records every op as well, which costs more than the allocations do. Two things keep
    ops out: a record scope that eager code never enters, and an activity that does not exist here, so
    that Kineto is not handed a copy of each event (which made up two thirds of the cost per event).
    Memory events come regardless of both.
    """

    def __init__(self) -> None:
        profiler = torch._C._profiler
        self._config = profiler.ProfilerConfig(
            profiler.ProfilerState.KINETO,
            False,  # report_input_shapes
            True,  # profile_memory
            False,  # with_stack
            False,  # with_flops
            False,  # with_modules
            profiler._ExperimentalConfig(),
        )
        activities = profiler.ProfilerActivity
        self._activities = {getattr(activities, "MTIA", activities.CPU)}
        self._scopes = {profiler.RecordScope.LITE_INTERPRETER}

    def enable(self) -> None:
        """Start recording on this thread."""
        block = torch.UntypedStorage(8)
        with _quiet_kineto():
            self.resume()
        with _quiet_log():
            del block  # the first free that the allocator cannot explain; see _quiet_log

    def resume(self) -> None:
        """Start recording again; the process has done so before."""
        torch._C._autograd._prepare_profiler(self._config, self._activities)
        # The stubs do not know the third argument.
        enable: Any = torch._C._autograd._enable_profiler
        enable(self._config, self._activities, self._scopes)

    def disable(self) -> Any:
        """Stop recording. Returns a result whose `experimental_event_tree()` holds the events."""
        with _quiet_log():
            return torch._C._autograd._disable_profiler()


def backward_engine_owner() -> tuple[Any, str]:
    """Object and attribute through which `Tensor.backward` and `autograd.grad` call the engine."""
    if hasattr(torch.autograd, "_engine_run_backward"):
        return torch.autograd, "_engine_run_backward"
    return torch.autograd, "backward"


def backward_engine_code() -> CodeType | None:
    """Code of the function within which a thread of Python runs the engine."""
    owner, name = backward_engine_owner()
    code = getattr(getattr(owner, name), "__code__", None)
    return code if isinstance(code, CodeType) else None


def job_profiler_owner() -> tuple[Any, str, str] | None:
    """Module through which a job's own `torch.profiler` starts and stops; two can not run at once."""
    owner = torch.autograd.profiler
    if hasattr(owner, "_prepare_profiler") and hasattr(owner, "_disable_profiler"):
        return owner, "_prepare_profiler", "_disable_profiler"
    return None


def node_number(node: Any) -> int:
    """Number of an autograd node, which no other node of its thread has."""
    return int(node._sequence_nr())


def optimizer_step_code() -> CodeType | None:
    """Code of what torch wraps around every `Optimizer.step`, and calls hooks from."""
    wrap = getattr(torch.optim.Optimizer, "profile_hook_step", None)
    code = None if wrap is None else getattr(wrap(lambda self: None), "__code__", None)
    return code if isinstance(code, CodeType) else None


def storage_pointer(storage: torch.UntypedStorage) -> int:
    """Address of the C++ object behind a storage."""
    return int(storage._cdata)


def loader_iterator_class() -> type[Any] | None:
    """Base class of DataLoader's iterators, whose `__next__` hands out batches."""
    from torch.utils.data import dataloader

    return getattr(dataloader, "_BaseDataLoaderIter", None)


Patch = Callable[..., Any]
