"""`batch_norm` as CUDA does it: by cuDNN where torch would ask it.

After aten/src/ATen/native/Normalization.cpp (`_select_batch_norm_backend`, `_batch_norm_impl_index`) and
aten/src/ATen/native/cudnn/BatchNorm.cpp. Autograd saves the same with both: the input, and mean and
deviation of each channel in float32.

What cuDNN keeps for backward (`reserve`) and its workspaces have sizes that only cuDNN knows
(`cudnnGetBatchNormalizationTrainingExReserveSpaceSize`); they are taken as empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_norm"]

_MOST_BATCHES = {True: 880801, False: 65535}
"""More samples than that are not cuDNN's, in training and without."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm` on a CUDA card."""
    if (
        weight is not None
        and bias is not None
        and _suits_cudnn(input, weight, running_mean, running_var, training)
    ):
        out: Tensor = torch.ops.aten.cudnn_batch_norm(
            input if _is_dense(input) else input.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            None if running_mean is None else running_mean.contiguous(),
            None if running_var is None else running_var.contiguous(),
            training,
            momentum,
            eps,
        )[0]
        return out
    return torch.batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps, False
    )


def _is_dense(input: Tensor) -> bool:
    """Contiguous, or channels last, which `suggest_memory_format` keeps."""
    if input.is_contiguous():
        return True
    if input.dim() == 4:
        return input.is_contiguous(memory_format=torch.channels_last)
    return input.dim() == 5 and input.is_contiguous(memory_format=torch.channels_last_3d)


def _suits_cudnn(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> bool:
    if not torch.backends.cudnn.enabled or input.numel() == 0:
        return False
    if torch.bfloat16 in (input.dtype, weight.dtype):
        return False
    if input.dtype is torch.float16 and weight.dtype is not torch.float32:
        return False
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return False
    return (
        input.dim() >= 3 and input.size(0) <= _MOST_BATCHES[training] and input.numel() < 2**31 - 1
    )
