"""`softmax` and `log_softmax` of float16 with a float32 result: on CUDA, one operator that converts.

Everywhere else torch converts first, into a copy. This is what autocast makes of attention scores and of
the logits of a cross entropy. After aten/src/ATen/native/SoftMax.cpp (`softmax`, `log_softmax`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["convert_in_softmax"]

_kept: list[torch.library.Library] = []


def convert_in_softmax() -> None:
    """Do it in this process, for good; the accelerator must be registered."""
    library = torch.library.Library("aten", "IMPL")
    for name in ("softmax", "log_softmax"):
        converting = getattr(torch.ops.aten, f"_{name}").default
        whole = getattr(torch.ops.aten, name).int
        library.impl(whole, _kernel(converting, whole), "AutogradPrivateUse1")
    _kept.append(library)  # what it registered goes when it goes


def _kernel(converting: Any, whole: Any) -> Callable[..., Any]:
    def kernel(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        # A C++ kernel is not seen by `__torch_function__` either.
        with torch._C.DisableTorchFunction():
            if input.dtype is torch.float16 and dtype is torch.float32:
                return converting(input, dim, True)
            return whole.decompose(input, dim, dtype)  # torch's own way

    return kernel
