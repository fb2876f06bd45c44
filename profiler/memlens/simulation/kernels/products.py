"""Products of matrices: what cuBLAS cannot read as it lies, and which of them ask cuBLASLt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["adds_bias", "copied_for_cublas"]

_OF_LT = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def copied_for_cublas(*places: int) -> Callable[..., tuple[int, ...]]:
    """Arguments that are copied first (`prepare_matrix_for_cublas`, `prepare_batch_matrix_...`)."""

    def sizes(args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
        return tuple(
            args[place].numel() * args[place].element_size()
            for place in places
            if not _readable(args[place])
        )

    return sizes


def _readable(matrix: Tensor) -> bool:
    rows, columns = matrix.shape[-2:]
    down, across = matrix.stride()[-2:]
    if (across == 1 and down >= columns) or (down == 1 and across >= rows):
        return True
    return matrix.is_contiguous()


def adds_bias(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether `addmm` adds a bias within the product (`isInputCompliesAddmmCudaLt` in cuda/Blas.cpp)."""
    bias, _, right = args[:3]
    return (
        bias.dim() == 1
        and bias.is_contiguous()
        and bias.dtype in _OF_LT
        and bias.size(0) == right.size(1)
        and min(right.shape) > 1
        and kwargs.get("beta", 1) == 1
    )
