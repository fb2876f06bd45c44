"""The simulated accelerator, as torch sees it: a device type of its own, and tensors without data on it.

Torch lets a Python program register one further device type ("PrivateUse1"). It cannot be called
`cuda` and cannot be taken back, so a simulation has a process of its own; scripts see it under the
name of `cuda` all the same (`memlens.simulation.disguise`).
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration

__all__ = [
    "DEVICE_TYPE",
    "SIMULATED",
    "UNDISGUISED",
    "DataLess",
    "FakeTensor",
    "on_device",
    "register_accelerator",
    "simulated_device",
]

DEVICE_TYPE = "simulated"
"""Torch's name of the accelerator; what raw errors of torch say."""


class DataLess(FakeTensorMode):
    """Makes tensors that have shape, dtype and device, and no data.

    The device may not be touched: else torch would make constants on it.
    """

    avoid_device_init = property(lambda self: True)

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)


class _Undisguised(threading.local):
    """While an operator runs, tensors tell the device that they really have.

    Only then: hooks on what autograd saves (checkpointing) compare devices, and must always see the same.
    """

    depth = 0
    """How many operators are running on this thread, one within another."""


UNDISGUISED = _Undisguised()


class _Module(ModuleType):
    """`torch.simulated`: what torch asks of an accelerator's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """No tensor has data, so no seed matters."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    def is_autocast_enabled(self) -> bool:
        return bool(torch.is_autocast_enabled(DEVICE_TYPE))

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """No tensor has data."""


def register_accelerator() -> None:
    """Register the device type in this process, for good."""
    backend_registration._setup_privateuseone_for_python_backend(
        rename=DEVICE_TYPE, backend_module=_Module(f"torch.{DEVICE_TYPE}")
    )
    # `torch.tensor(...)` makes its tensor on the host and moves it, by an operator that modes see.
    torch._C._set_only_lift_cpu_tensors(True)
    # The engine would ask for a queue of the device; on one thread it needs none, and runs in order.
    torch.autograd.set_multithreading_enabled(False)


SIMULATED = torch.device("privateuseone", 0)
"""The one device; it is called `simulated:0` once the accelerator is registered."""


def simulated_device(device: Any) -> Any:
    """A device as the simulation has it: any CUDA device is the simulated one."""
    if device is None:
        return None
    if isinstance(device, str):
        device = torch.device(device)
    elif isinstance(device, int):
        return SIMULATED
    if isinstance(device, torch.device) and device.type in ("cuda", SIMULATED.type):
        return SIMULATED
    return device


def on_device(tensor: Any) -> bool:
    """Whether this is a tensor of the simulated device."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == SIMULATED.type
