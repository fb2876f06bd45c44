"""Operators that torch takes apart on devices that have no kernel of their own for them.

`silu_backward` of the simulated device would be eight operators, each with a result of its own. Telling
torch that the device has a kernel is enough: then autograd keeps the operator whole, and it is never
run, since tensors without data stop above it.

In torch's native_functions.yaml they are those with a CUDA kernel beside `CompositeImplicitAutograd`.
`one_hot` is taken apart on CUDA as well, but otherwise than tensors without data are (Onehot.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["keep_whole"]

_WITH_CUDA_KERNEL = ("silu_backward", "mish_backward", "_fused_rms_norm")
_kept: list[Any] = []


def keep_whole() -> None:
    """Do it in this process, for good; the accelerator must be registered."""
    library = torch.library.Library("aten", "IMPL")
    for name in _WITH_CUDA_KERNEL:
        library.impl(name, _never, "PrivateUse1")
    library.impl("one_hot", _one_hot, "AutogradPrivateUse1")
    _kept.append(library)  # what it registered goes when it goes


def _never(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("a kernel of the simulated device was asked to run")


def _one_hot(index: Tensor, num_classes: int = -1) -> Any:
    with torch._C.DisableTorchFunction():
        if num_classes < 0:  # as many as the largest says
            return torch.ops.aten.one_hot.default.decompose(index, num_classes)
        zeros = index.new_zeros((*index.shape, num_classes))
        return zeros.scatter_(-1, index.unsqueeze(-1), 1)
