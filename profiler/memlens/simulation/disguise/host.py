"""What else of torch has to know that tensors have no data: modules, optimizers, loaders, checkpoints."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils.data import DataLoader

from memlens.simulation.backend import SIMULATED, FakeTensor, simulated_device
from memlens.simulation.disguise.tensors import CUDA
from memlens.simulation.dispatch import Simulation
from memlens.simulation.problems import Notes

__all__ = ["install_host"]

_torch: Any = torch


def install_host(simulation: Simulation) -> None:
    """Change what would fail, or take another way than with CUDA; for the life of the process."""
    notes = simulation.notes
    _let_modules_move()
    _choose_foreach()
    _load_in_this_process(notes)
    _skip_checkpoints(notes)
    _run_eagerly(notes)
    _name_devices()
    _take_cudas_ways()
    _follow_into_threads(simulation)
    memory = simulation.memory
    plain: Callable[[Any], int] = _torch.UntypedStorage.data_ptr

    def data_ptr(storage: Any) -> int:
        return memory.address(storage) or (0 if storage.device.type == "meta" else plain(storage))

    _torch.UntypedStorage.data_ptr = data_ptr
    plain_resize: Callable[[Any, int], Any] = _torch.UntypedStorage.resize_

    def resize_(storage: Any, size: int) -> Any:
        # No operator: FSDP gives memory back in this way, and takes it again.
        result = plain_resize(storage, size)
        memory.resize(storage)
        return result

    _torch.UntypedStorage.resize_ = resize_


def _let_modules_move() -> None:
    """`module.to("cuda")` keeps its parameters' identity by swapping what is behind them.

    Torch does so for tensors without data anyway, but not while there are weak references to them.
    """

    def swap_tensors(t1: Any, t2: Any) -> None:
        t1.__class__, t2.__class__ = t2.__class__, t1.__class__
        t1.__dict__, t2.__dict__ = t2.__dict__, t1.__dict__
        _torch._C._swap_tensor_impl(t1, t2)

    _torch.utils.swap_tensors = swap_tensors
    _torch.__future__.set_swap_module_params_on_conversion(True)


def _choose_foreach() -> None:
    """Optimizers and gradient clipping take the foreach kernels, which they do for known types only.

    The for-loop would need less memory than the real job does.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for owner, name in (
        (optimizer, "_foreach_supported_types"),
        (_foreach_utils, "_foreach_supported_types"),
    ):
        types = getattr(owner, name, None)
        if types is not None and FakeTensor not in types:
            types.append(FakeTensor)


def _load_in_this_process(notes: Notes) -> None:
    """Tensors without data cannot be sent between processes."""
    original = DataLoader.__init__

    @wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("num_workers"):
            notes.add("batches are loaded in the training's process, without workers")
            kwargs["num_workers"] = 0
        for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"):
            kwargs.pop(name, None)
        kwargs["pin_memory"] = False
        original(self, *args, **kwargs)

    DataLoader.__init__ = __init__  # type: ignore[method-assign]


def _skip_checkpoints(notes: Notes) -> None:
    def save(*args: Any, **kwargs: Any) -> None:
        notes.add("a checkpoint is not saved")

    _torch.save = save
    try:
        import safetensors.torch
    except ImportError:
        pass
    else:
        safetensors.torch.save_file = safetensors.torch.save_model = save
    original = _torch.load

    @wraps(original)
    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        where = map_location
        if isinstance(where, (str, torch.device)):
            where = torch.device(where)
        loaded = original(file, "cpu", *args, **kwargs)
        if isinstance(where, torch.device) and where.type == "cuda":
            return _moved(loaded)
        return loaded

    _torch.load = load


def _moved(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(SIMULATED)
    if isinstance(value, dict):
        return type(value)((key, _moved(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item) for item in value)
    return value


def _run_eagerly(notes: Notes) -> None:
    """A compiler would look for data, and for the device's kernels."""
    note = "torch.compile is left out, so memory is that of eager execution"

    def compile_(model: Any = None, **options: Any) -> Any:
        if model is None:
            return lambda function: compile_(function, **options)
        if isinstance(model, torch.nn.Module):
            notes.add(note)
            return model

        @wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            notes.add(note)  # now: libraries compile more functions than are called
            return model(*args, **kwargs)

        return call

    _torch.compile = compile_

    def compile_module(self: Any, *args: Any, **kwargs: Any) -> None:
        notes.add(note)

    _torch.nn.Module.compile = compile_module


def _follow_into_threads(simulation: Simulation) -> None:
    """Modes are of one thread; libraries load weights in others."""
    # So that the order is the same every time.
    os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
    start = threading.Thread.start

    def start_simulated(self: threading.Thread) -> None:
        run = self.run

        def run_simulated() -> None:
            with simulation:
                run()

        setattr(self, "run", run_simulated)  # noqa: B010
        start(self)

    setattr(threading.Thread, "start", start_simulated)  # noqa: B010


def _with_device_mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Torch makes these on the host and moves them without asking anybody else."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device") is not None:
            kwargs["device"] = simulated_device(kwargs["device"])
        return function(*args, **kwargs)

    return call


def _name_devices() -> None:
    """Where a device is not an argument of a function that torch shows us."""
    _device_constructors()  # remembers the functions as they are now
    enter: Callable[..., None] = DeviceContext.__init__

    def __init__(self: Any, device: Any) -> None:
        enter(self, simulated_device(device))

    setattr(DeviceContext, "__init__", __init__)  # noqa: B010
    for owner, name in (
        (_torch, "tensor"),
        (_torch, "as_tensor"),
        (_torch, "asarray"),
        (_torch.Tensor, "new_tensor"),
    ):
        setattr(owner, name, _with_device_mapped(getattr(owner, name)))
    default: Callable[[], Any] = _torch.get_default_device
    _torch.get_default_device = lambda: CUDA if default().type == SIMULATED.type else default()
    generator: Any = torch.Generator

    class Generator(generator):  # type: ignore[misc]
        """A generator of the host: the device's would have nothing to generate."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return generator.__new__(cls, device="cpu")

        def __init__(self, device: Any = "cpu") -> None:
            pass

    _torch.Generator = Generator
    # The mesh of `fully_shard`, where a job names none.
    _torch._C._get_accelerator = lambda check=None: torch.device(CUDA.type)
    if hasattr(torch, "accelerator"):
        _torch.accelerator.current_accelerator = lambda check_available=False: torch.device(
            CUDA.type
        )
        _torch.accelerator.is_available = lambda: True
        _torch.accelerator.device_count = lambda: 1


def _take_cudas_ways() -> None:
    """Where torch or a library asks whether it is CUDA, or whether tensors have no data at all."""
    from torch import _meta_registrations, _subclasses

    registrations: Any = _meta_registrations
    hint: Callable[[Any], str] = registrations.device_hint

    def device_hint(tensor: Any) -> str:
        # Strides and extra results of some kernels are the device's own.
        found = hint(tensor)
        return CUDA.type if found == SIMULATED.type else found

    registrations.device_hint = device_hint

    class Traced(FakeTensor):
        """What libraries take for a tensor that is traced: Transformers makes other masks for such."""

    _subclasses.FakeTensor = Traced  # type: ignore[misc]
