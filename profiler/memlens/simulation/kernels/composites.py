"""Operators that have a kernel of their own for CUDA, and are taken apart on devices that have none.

`silu_backward` of the simulated device would be eight operators, each with a result of its own. Telling
torch that the device has a kernel is enough: then autograd keeps the operator whole, and it is never
run, since tensors without data stop above it.

In torch's native_functions.yaml they are those with a CUDA kernel beside `CompositeImplicitAutograd`.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["keep_whole"]

_WITH_CUDA_KERNEL = ("silu_backward", "mish_backward", "_fused_rms_norm")
_kept: list[Any] = []


def keep_whole() -> None:
    """Do it in this process, for good; the accelerator must be registered."""
    library = torch.library.Library("aten", "IMPL")
    for name in _WITH_CUDA_KERNEL:
        library.impl(name, _never, "PrivateUse1")
    _kept.append(library)  # what it registered goes when it goes


def _never(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a kernel of the simulated device was asked to run")
