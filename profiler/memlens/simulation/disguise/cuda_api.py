"""`torch.cuda` of a device that is not there: queries are answered by the allocator's model.

Only what scripts and libraries call. What would change nothing about memory (synchronising, seeds,
profiler ranges) does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from memlens.simulation.disguise.tensors import CUDA
from memlens.simulation.memory import DeviceMemory
from memlens.simulation.problems import Notes, refuse

__all__ = ["Card", "Event", "Stream", "install_cuda"]


class Card(SimpleNamespace):
    """What `torch.cuda.get_device_properties` gives."""

    name: str
    major: int
    minor: int
    total_memory: int


class Stream:
    """A stream: only which one it is matters, since each has blocks of its own."""

    _made = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        Stream._made += 1
        self.number = Stream._made
        self.device, self.priority = CUDA, priority

    @property
    def cuda_stream(self) -> int:
        """Its handle."""
        return self.number

    stream_id = cuda_stream

    def wait_stream(self, stream: Any) -> None:
        """Nothing runs, so nothing waits."""

    def wait_event(self, event: Any) -> None:
        """Nothing runs, so nothing waits."""

    def synchronize(self) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        """All work is done."""
        return True

    def record_event(self, event: Any = None) -> Any:
        """An event that has happened."""
        return event or Event()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.number == self.number

    def __hash__(self) -> int:
        return self.number


class Event:
    """An event that has happened; nothing takes time."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """It has happened."""

    def wait(self, stream: Any = None) -> None:
        """It has happened."""

    def query(self) -> bool:
        """It has happened."""
        return True

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, other: Any) -> float:
        """One millisecond, so that nobody divides by zero."""
        return 1.0


class _Streams:
    """The current stream of the process."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.default = Stream()
        self.default.number = 0
        self.current = self.default

    def set(self, stream: Any) -> None:
        if isinstance(stream, Stream):
            self.current = stream
            self.memory.stream = stream.number

    @contextmanager
    def use(self, stream: Any) -> Iterator[Any]:
        before = self.current
        self.set(stream)
        try:
            yield stream
        finally:
            self.set(before)


def install_cuda(memory: DeviceMemory, card: Card, notes: Notes) -> None:
    """Have `torch.cuda` answer as if there were one device.

    Args:
        memory: of the device.
        card: what the device is.
        notes: gets what cannot be done.
    """
    streams = _Streams(memory)
    state = torch.Generator().get_state()
    nothing = _nothing
    cuda: Any = torch.cuda
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": nothing,
        "init": nothing,
        "_lazy_call": lambda call, **_: call(),
        "device_count": lambda: 1,
        "_device_count_nvml": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "_get_device_index": lambda *_, **__: 0,
        "get_device_name": lambda device=None: card.name,
        "get_device_capability": lambda device=None: (card.major, card.minor),
        "get_device_properties": lambda device=None: card,
        "get_arch_list": lambda: [f"sm_{card.major}{card.minor}"],
        "can_device_access_peer": lambda *_: False,
        "is_bf16_supported": lambda *_, **__: card.major >= 8,
        "is_current_stream_capturing": lambda: False,
        "synchronize": nothing,
        "ipc_collect": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "seed": nothing,
        "seed_all": nothing,
        "initial_seed": lambda: 0,
        "get_rng_state": lambda *_, **__: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        "set_rng_state": nothing,
        "set_rng_state_all": nothing,
        "Stream": Stream,
        "ExternalStream": Stream,
        "Event": Event,
        "stream": streams.use,
        "StreamContext": streams.use,
        "set_stream": streams.set,
        "current_stream": lambda device=None: streams.current,
        "default_stream": lambda device=None: streams.default,
        "CUDAGraph": _graphs_that_refuse(notes),
        **_memory_answers(memory),
    }
    for owner in (cuda, cuda.memory, cuda.random, cuda.streams, cuda.graphs):
        for name, answer in answers.items():
            if hasattr(owner, name):
                setattr(owner, name, answer)
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        setattr(cuda.nvtx, name, nothing)
    torch.version.cuda = torch.version.cuda or "12.8"
    for name, answer in {
        "_cuda_clearCublasWorkspaces": memory.drop_workspaces,
        "_cuda_getCurrentRawStream": lambda device: memory.stream,
    }.items():
        setattr(torch._C, name, answer)


def _graphs_that_refuse(notes: Notes) -> type:
    class CUDAGraph:
        """What is captured has memory of its own, in a pool that no history tells of."""

        def __new__(cls, *args: object, **kwargs: object) -> CUDAGraph:
            raise refuse(
                notes,
                "a CUDA graph",
                "the memory of graphs cannot be simulated",
                "plan the job without graphs, or measure it with memlens run",
            )

    return CUDAGraph


def _memory_answers(memory: DeviceMemory) -> dict[str, Any]:
    allocator = memory.allocator
    limits = {"fraction": 1.0}

    def stats(device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": allocator.allocated_bytes,
            "allocated_bytes.all.peak": allocator.peak_allocated_bytes,
            "active_bytes.all.current": allocator.active_bytes,
            "active_bytes.all.peak": allocator.peak_active_bytes,
            "reserved_bytes.all.current": allocator.reserved_bytes,
            "reserved_bytes.all.peak": allocator.peak_reserved_bytes,
            "requested_bytes.all.current": allocator.requested_bytes,
            "num_alloc_retries": allocator.retries,
            "num_ooms": allocator.out_of_memories,
        }

    def free_and_total(device: Any = None) -> tuple[int, int]:
        return max(0, memory.total_bytes - allocator.reserved_bytes), memory.total_bytes

    def reset(device: Any = None) -> None:
        allocator.reset_peaks()

    def set_fraction(fraction: float, device: Any = None) -> None:
        limits["fraction"] = float(fraction)

    return {
        "memory_allocated": lambda device=None: allocator.allocated_bytes,
        "max_memory_allocated": lambda device=None: allocator.peak_allocated_bytes,
        "memory_reserved": lambda device=None: allocator.reserved_bytes,
        "max_memory_reserved": lambda device=None: allocator.peak_reserved_bytes,
        "memory_cached": lambda device=None: allocator.reserved_bytes,
        "max_memory_cached": lambda device=None: allocator.peak_reserved_bytes,
        "reset_peak_memory_stats": reset,
        "reset_max_memory_allocated": reset,
        "reset_max_memory_cached": reset,
        "reset_accumulated_memory_stats": _nothing,
        "empty_cache": allocator.empty_cache,
        "mem_get_info": free_and_total,
        "memory_stats": stats,
        "memory_summary": lambda *_, **__: "",
        "memory_snapshot": lambda *_, **__: allocator.snapshot()["segments"],
        "_snapshot": lambda *_, **__: allocator.snapshot(),
        "_record_memory_history": _nothing,
        "set_per_process_memory_fraction": set_fraction,
        "get_per_process_memory_fraction": lambda device=None: limits["fraction"],
        "get_allocator_backend": lambda: "native",
    }


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What has no bearing on memory."""
