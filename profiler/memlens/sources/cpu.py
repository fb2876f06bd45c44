"""Chooses how CPU allocations are recorded."""

from __future__ import annotations

import os

from memlens.errors import MemlensError, SourceError, UsageError
from memlens.recording.names import Names
from memlens.sources.allocator_hook import AllocatorHookSource
from memlens.sources.base import Source
from memlens.sources.torch_profiler import TorchProfilerSource
from memlens.sources.torch_profiler import check as check_profiler

__all__ = ["check", "hook_problem", "make_cpu_source"]

CHOICE = "MEMLENS_CPU_SOURCE"


def make_cpu_source(names: Names, *, stack_depth: int) -> Source:
    """The allocator hook where it can be compiled, else torch's profiler.

    Args:
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.

    Raises:
        SourceError: neither works here.
        UsageError: MEMLENS_CPU_SOURCE names neither.
    """
    choice = os.environ.get(CHOICE, "auto")
    if choice not in ("auto", "hook", "profiler"):
        raise UsageError(f"{CHOICE} must be auto, hook or profiler, not {choice!r}")
    if choice == "profiler":
        return TorchProfilerSource()
    try:
        return AllocatorHookSource(names, stack_depth=stack_depth)
    except SourceError as error:
        if choice == "hook":
            raise
        source = TorchProfilerSource()
        source.notes.append(f"the better way is not possible here: {error}")
        return source


def check() -> list[str]:
    """What keeps this process from recording CPU allocations; empty when it can."""
    return [] if hook_problem() is None else check_profiler()


def hook_problem() -> str | None:
    """Why the allocator hook can not be used, so that stacks and other threads are not seen."""
    try:
        AllocatorHookSource(Names(), stack_depth=0)
    except MemlensError as error:
        return str(error)
    return None
