"""Every private name of torch that memlens touches, and why.

Each is looked up by feature, so that a torch that lacks one gives a clear answer instead of an
AttributeError in the middle of a training. Seen in torch 2.9 to 2.13.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = [
    "MemoryProfiler",
    "backward_engine_owner",
    "job_profiler_owner",
    "loader_iterator_class",
    "missing_profiler_features",
    "profiler_is_running",
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
    ("torch._C._profiler", "_ExtraFields_Allocation"),
    ("torch._C._profiler", "_ExtraFields_PyCall"),
)


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


class MemoryProfiler:
    """torch's own profiler, told to record allocations and nothing else.

    `torch.profiler` records every op as well, which costs more than the allocations do. Asking the
    same C++ profiler for a record scope that eager code never enters leaves the memory events.

    Args:
        with_stack: also record Python calls, from which stacks are read.
    """

    def __init__(self, *, with_stack: bool) -> None:
        profiler = torch._C._profiler
        self._config = profiler.ProfilerConfig(
            profiler.ProfilerState.KINETO,
            False,  # report_input_shapes
            True,  # profile_memory
            with_stack,
            False,  # with_flops
            False,  # with_modules
            profiler._ExperimentalConfig(),
        )
        self._activities = {profiler.ProfilerActivity.CPU}
        self._scopes = {profiler.RecordScope.LITE_INTERPRETER}

    def enable(self) -> None:
        """Start recording on this thread."""
        with _quiet_kineto():
            self.resume()

    def resume(self) -> None:
        """Start recording again; the process has done so before."""
        torch._C._autograd._prepare_profiler(self._config, self._activities)
        torch._C._autograd._enable_profiler(self._config, self._activities, self._scopes)

    def disable(self) -> Any:
        """Stop recording. Returns a result whose `experimental_event_tree()` holds the events."""
        return torch._C._autograd._disable_profiler()


def backward_engine_owner() -> tuple[Any, str]:
    """Object and attribute through which `Tensor.backward` and `autograd.grad` call the engine."""
    if hasattr(torch.autograd, "_engine_run_backward"):
        return torch.autograd, "_engine_run_backward"
    return torch.autograd, "backward"


def job_profiler_owner() -> tuple[Any, str, str] | None:
    """Module through which a job's own `torch.profiler` starts and stops; two can not run at once."""
    owner = torch.autograd.profiler
    if hasattr(owner, "_prepare_profiler") and hasattr(owner, "_disable_profiler"):
        return owner, "_prepare_profiler", "_disable_profiler"
    return None


def loader_iterator_class() -> type[Any] | None:
    """Base class of DataLoader's iterators, whose `__next__` hands out batches."""
    from torch.utils.data import dataloader

    return getattr(dataloader, "_BaseDataLoaderIter", None)


Patch = Callable[..., Any]
