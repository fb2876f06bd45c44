"""Chooses the source for the kind of device that is asked for."""

from __future__ import annotations

from memlens.errors import SourceError
from memlens.recording.names import Names
from memlens.sources.base import Source
from memlens.sources.cpu import make_cpu_source
from memlens.sources.cuda import CudaSource
from memlens.torch_private import AllocatorHistory

__all__ = ["cuda_problem", "make_source"]


def make_source(device: str, names: Names, *, stack_depth: int) -> Source:
    """The source for a kind of device.

    Args:
        device: `cpu`, `cuda`, `auto` (CUDA where there is a device), or `simulated`, in a process that
            `memlens plan` has started.
        names: where stack frames are numbered.
        stack_depth: how many innermost Python frames to keep; 0 records no stacks.

    Raises:
        SourceError: it can not be recorded here.
    """
    if device == "simulated":
        return _simulated(names, stack_depth)
    if device == "auto":
        device = "cpu" if cuda_problem() else "cuda"
    if device == "cpu":
        return make_cpu_source(names, stack_depth=stack_depth)
    problem = cuda_problem()
    if problem:
        raise SourceError(f"cannot record CUDA memory: {problem}; --device cpu records the CPU's")
    return CudaSource(names, stack_depth=stack_depth, history=AllocatorHistory())


def _simulated(names: Names, stack_depth: int) -> Source:
    from memlens.simulation.process import current_simulation
    from memlens.sources.simulated import SimulatedSource

    simulated = current_simulation()
    if simulated is None:
        raise SourceError("nothing simulates a device in this process; use memlens plan")
    return SimulatedSource(names, stack_depth=stack_depth, simulated=simulated)


def cuda_problem() -> str | None:
    """Why CUDA memory can not be recorded here; None when it can. Makes no CUDA context."""
    try:
        if not AllocatorHistory.device_names():
            return "there is no CUDA device"
        missing = AllocatorHistory.missing()
    except Exception as error:  # a driver that is broken is as good as none
        return f"{type(error).__name__}: {error}"
    return f"this torch lacks {', '.join(missing)}" if missing else None
