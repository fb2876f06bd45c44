"""Every private name of torch that memlens touches, and why.

Each is looked up by feature, so that a torch that lacks one gives a clear answer instead of an
AttributeError in the middle of a training. Seen in torch 2.9 to 2.13.
"""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType
from typing import Any

import torch

__all__ = [
    "SIMULATION_NAMES",
    "AllocatorHistory",
    "MemoryProfiler",
    "backward_engine_code",
    "backward_engine_owner",
    "job_history_owner",
    "job_profiler_owner",
    "loader_iterator_class",
    "missing_profiler_features",
    "missing_simulation_features",
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

SIMULATION_NAMES = (
    # Tensors without data, and the device type that they lie on.
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch._subclasses.fake_tensor.DataDependentOutputException",
    "torch._subclasses.fake_tensor.DynamicOutputShapeException",
    "torch._subclasses.fake_tensor.UnsupportedFakeTensorException",
    "torch._subclasses.fake_tensor.UnsupportedOperatorException",
    "torch.utils.backend_registration._setup_privateuseone_for_python_backend",
    "torch._C._set_only_lift_cpu_tensors",
    "torch._meta_registrations",
    # Seeing operators, and taking composite ones apart.
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch._ops.OpOverload",
    "torch._C.DisableTorchFunction",
    "torch._C.DispatchKey",
    "torch._C.DispatchKeySet",
    "torch._C._TorchDispatchModeKey",
    "torch._C._get_dispatch_mode",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C._dispatch_get_all_op_names",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    "torch._C._dispatch_keys",
    # What the autograd engine is at, and who else has a tensor.
    "torch._C._current_autograd_node",
    "torch._C._current_graph_task_id",
    "torch._C._storage_Use_Count",
    # Kernels that are chosen in C++, and are chosen here in its stead.
    "torch._C._get_sdp_priority_order",
    "torch._C._nn.scaled_dot_product_attention",
    "torch.utils._foreach_utils",
    # Modules that move, devices by default, wrappers.
    "torch._C._swap_tensor_impl",
    "torch.Tensor._make_subclass",
    "torch.Tensor._make_wrapper_subclass",
    "torch.utils._device.DeviceContext",
    "torch.utils._device._device_constructors",
    "torch._C._get_accelerator",
    # Only where a job makes a process group.
    "torch.testing._internal.distributed.fake_pg.FakeStore",
)
"""Everything private that `memlens.simulation` needs; autocast.py names besides what it replaces."""

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


def missing_simulation_features() -> list[str]:
    """Names that a simulation needs and this torch lacks; empty when it can work."""
    missing = []
    for name in SIMULATION_NAMES[:-1]:
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
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


class AllocatorHistory:
    """The history that torch's CUDA caching allocator keeps of itself, on all devices.

    Everything that `memlens.sources.cuda` asks of torch; tests have a stand-in. The same calls serve
    AMD's GPUs in a ROCm build of torch.

    * `torch.cuda.memory._record_memory_history` switches it on, off, and empties it.
    * `torch._C._cuda_memorySnapshot` copies it, together with what is allocated.
    * `torch._C._cuda_setMemoryMetadata` (since 2.10): a text that entries carry from there on, of one
      thread.
    * `torch._C._cuda_attach_out_of_memory_observer`: called before the exception is raised, without the
      allocator's lock. It can not be detached, so one is attached for good.
    * `torch.cuda._lazy_call`: a function to call once the job has made a CUDA context. Making one on
      the job's behalf would break jobs that fork first.
    """

    device_type = "cuda"

    def __init__(self) -> None:
        self._parameters = set(signature(torch.cuda.memory._record_memory_history).parameters)
        self.set_text: Callable[[str], None] | None = getattr(
            torch._C, "_cuda_setMemoryMetadata", None
        )
        """Sets the text of this thread; None: this torch can not."""

    @staticmethod
    def missing() -> list[str]:
        """Names that this torch lacks; empty when it can tell its history."""
        needed = ("_cuda_record_memory_history", "_cuda_memorySnapshot")
        missing = [f"torch._C.{name}" for name in needed if not hasattr(torch._C, name)]
        return missing

    @staticmethod
    def can_annotate() -> bool:
        """Whether entries can carry a text."""
        return hasattr(torch._C, "_cuda_setMemoryMetadata")

    @staticmethod
    def tells_out_of_memory() -> bool:
        """Whether torch calls somebody before it raises."""
        return hasattr(torch._C, "_cuda_attach_out_of_memory_observer")

    @staticmethod
    def device_names() -> tuple[str, ...]:
        """All devices that this process sees. Makes no context."""
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))

    @staticmethod
    def is_ready() -> bool:
        """Whether the job has made a CUDA context, without which there is nothing to record."""
        return bool(torch.cuda.is_initialized())

    @staticmethod
    def when_ready(call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called once there is a context. Returns what withdraws that."""
        torch.cuda._lazy_call(call)

        def withdraw() -> None:
            queued = torch.cuda._queued_calls
            queued[:] = [item for item in queued if item[0] is not call]

        return withdraw

    @staticmethod
    def backend() -> str:
        """`native`, or another allocator, which keeps no history."""
        return torch.cuda.memory.get_allocator_backend()

    @staticmethod
    def is_enabled() -> bool:
        """Whether somebody records already."""
        ask = getattr(torch._C, "_cuda_isHistoryEnabled", None)
        return bool(ask()) if ask is not None else False

    def enable(self, max_entries: int, *, stacks: bool) -> None:
        """Record, with what there is of earlier history forgotten."""
        wanted: dict[str, Any] = {
            "context": "alloc" if stacks else None,
            "stacks": "python",
            "max_entries": max_entries,
            "clear_history": True,
        }
        known = {key: value for key, value in wanted.items() if key in self._parameters}
        self.record("all", **known)

    @staticmethod
    def record(*args: Any, **kwargs: Any) -> None:
        """Torch's own function, whoever has wrapped it since."""
        inspect.unwrap(torch.cuda.memory._record_memory_history)(*args, **kwargs)

    def disable(self) -> None:
        """Record no more."""
        self.record(None)

    @staticmethod
    def snapshot() -> dict[str, Any]:
        """What is allocated, and the history."""
        snapshot: dict[str, Any] = torch._C._cuda_memorySnapshot(None)
        return snapshot

    @staticmethod
    def text() -> str:
        """The text that entries of this thread carry."""
        ask = getattr(torch._C, "_cuda_getMemoryMetadata", None)
        return str(ask()) if ask is not None else ""

    @staticmethod
    def calls(device: int) -> int:
        """How often the allocator has handed out and taken back a block, in all."""
        counts = torch.cuda.memory_stats(device)
        return int(
            counts.get("allocation.all.allocated", 0) + counts.get("allocation.all.freed", 0)
        )

    @staticmethod
    def is_capturing() -> bool:
        """Whether this thread's stream is being captured into a CUDA graph, which forbids some calls."""
        ask = getattr(torch.cuda, "is_current_stream_capturing", None)
        return bool(ask()) if ask is not None else False

    @staticmethod
    def device_memory(device: int) -> tuple[int, int]:
        """Free and total bytes of a device, all processes counted."""
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)

    @staticmethod
    def current_stream(device: int) -> int:
        """The stream for which this thread asks for memory, as the allocator's segments name it."""
        return int(torch.cuda.current_stream(device).cuda_stream)

    @staticmethod
    def limit_bytes(device: int) -> int | None:
        """What `set_per_process_memory_fraction` allows; None: no limit, or not known."""
        ask = getattr(torch.cuda, "get_per_process_memory_fraction", None)
        fraction = ask(device) if ask is not None else 1.0
        if fraction >= 1.0:
            return None
        return int(fraction * torch.cuda.get_device_properties(device).total_memory)

    @staticmethod
    def pinned_bytes() -> int | None:
        """Host memory that is pinned for transfers; None: this torch does not tell."""
        ask = getattr(torch.cuda, "host_memory_stats", None)
        value = ask().get("allocated_bytes.current") if ask is not None else None
        return None if value is None else int(value)

    _on_out_of_memory: Callable[[int, int, int, int], None] | None = None
    _attached = False

    @classmethod
    def observe_out_of_memory(cls, call: Callable[[int, int, int, int], None] | None) -> bool:
        """Have `call(device, requested, limit, free)` called when a request fails; None: no more.

        `requested` is the segment that would have been made, `limit` what the process may take, or else
        the device's total (CUDACachingAllocator.cpp, where it calls `oom_observers_`).

        Returns:
            Whether this torch tells.
        """
        attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
        if attach is None:
            return False
        cls._on_out_of_memory = call
        if not cls._attached:
            cls._attached = True
            attach(cls._tell)
        return True

    @classmethod
    def _tell(cls, device: int, requested: int, limit: int, free: int) -> None:
        call = cls._on_out_of_memory
        if call is not None:
            call(device, requested, limit, free)


def job_history_owner() -> tuple[Any, str]:
    """Module and attribute through which a job records the allocator's history itself."""
    return torch.cuda.memory, "_record_memory_history"
