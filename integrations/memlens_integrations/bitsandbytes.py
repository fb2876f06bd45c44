"""bitsandbytes: weights in 4 and 8 bits, and what it takes to read them.

A parameter holds its codes as its data. The scales stand beside it in Python objects, where no walk
over parameters and buffers finds them: in `quant_state` (4 bits: absmax and code book; where absmax is
quantised as well, its offset and a state of its own), or (8 bits) as `SCB` of the parameter, which the
layer's first call moves to its `state`.

Its kernels for CUDA are Python functions that make what they return, and what they need in between, and
hand addresses to a native library. In a simulation those functions run as ever, over a native library
whose functions do nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch

from memlens.events import WeightKind
from memlens.recording.recorder import Recorder
from memlens.recording.storages import tensors_in
from memlens.sources.base import Gauge

__all__ = ["BitsAndBytesAdapter"]


class BitsAndBytesAdapter:
    """Knows quantised parameters. As long as they are not quantised yet, they are like others."""

    library = "bitsandbytes"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Nothing to hook into."""

    def gauges(self) -> list[Gauge]:
        """Managed memory of paged optimizers, which moves between host and device as it is used.

        It comes from `cudaMallocManaged`, not from torch's allocator, and is wrapped as a CPU tensor.
        """
        functional = sys.modules.get("bitsandbytes.functional")
        manager = getattr(getattr(functional, "GlobalPageManager", None), "_instance", None)
        held = {
            tensor.data_ptr(): tensor.nbytes for tensor in getattr(manager, "paged_tensors", ())
        }
        return [("bitsandbytes managed memory", "", sum(held.values()))] if held else []

    def simulate(self) -> None:
        """Put a native library that does nothing in the place of the one that needs CUDA."""
        from memlens.simulation.disguise.imports import when_imported

        loader: Any = ctypes.LibraryLoader
        load: Callable[[Any, str], Any] = loader.LoadLibrary

        def load_library(self: Any, name: str) -> Any:
            return _NoLibrary() if _NATIVE in str(name) else load(self, name)

        loader.LoadLibrary = load_library
        if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
            setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)  # noqa: B010
        when_imported("bitsandbytes.backends.cuda.ops", _run_cuda_kernels)

    def weights(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, WeightKind]]:
        """A module's quantised parameters, each with its scales."""
        from bitsandbytes.nn.modules import Int8Params, Params4bit

        for name, parameter in module._parameters.items():
            if isinstance(parameter, Params4bit):
                held = {"quant_state": getattr(parameter, "quant_state", None)}
            elif isinstance(parameter, Int8Params):
                own = getattr(parameter, "SCB", None)
                held = {"SCB": own if own is not None else _state_scales(module)}
            else:
                continue
            scales = list(tensors_in(held, name))
            if not scales:  # it is not quantised yet
                continue
            yield name, parameter, WeightKind.QUANTISED
            for text, tensor in scales:
                yield text, tensor, WeightKind.QUANTISED


def _state_scales(module: torch.nn.Module) -> object:
    return getattr(getattr(module, "state", None), "SCB", None)


# -- in a simulation -------------------------------------------------------------------------------

_NATIVE = "libbitsandbytes_cuda"


class _NoLibrary:
    """Has every function of the native library; they do nothing, and say that all is well."""

    def __init__(self) -> None:
        self.cget_managed_ptr = _Function(_managed)

    def __getattr__(self, name: str) -> Any:
        found = _Function(lambda *_: 0)
        setattr(self, name, found)
        return found


class _Function:
    """A function of the library, of which others set the types of arguments and result."""

    def __init__(self, call: Callable[..., int]) -> None:
        self._call = call
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> int:
        return self._call(*arguments)


def _managed(size: Any) -> int:
    """Address of managed memory: pages of the host that nobody ever writes to, and so take none."""
    pages = mmap.mmap(-1, max(1, size.value), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _pages.append(pages)
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


_pages: list[mmap.mmap] = []
"""The library never gives any back."""


def _run_cuda_kernels() -> None:
    """Have the kernels that the library has for CUDA run on the simulated device."""
    from memlens.simulation.dispatch import Simulation

    # Computed: also those that it registered for every device.
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("bitsandbytes::") and has_kernel(name, "CUDA"):
            torch.library.register_torch_dispatch(name, Simulation, _run_cuda_kernel)


def _run_cuda_kernel(
    simulation: Any,
    func: Any,
    types: Sequence[type],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    from memlens.simulation.backend import on_device

    if not any(on_device(each) for each in args):
        return simulation.__torch_dispatch__(func, types, args, kwargs)
    with simulation:
        return func.redispatch(_cuda_keys(), *args, **(kwargs or {}))


@cache
def _cuda_keys() -> Any:
    return torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
