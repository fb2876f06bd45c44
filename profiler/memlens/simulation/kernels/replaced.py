"""Operators whose results on CUDA are laid out otherwise than torch's fake ones on the simulated device.

Checked and the same: mean and deviation of `native_layer_norm` (float32), of `native_batch_norm`
(float32) and `native_group_norm` (of the input's type), the bool mask of `native_dropout`, the int64
indices of max pooling, the seeds of flash and cuDNN attention, `total_weight` of `nll_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memlens.simulation.kernels.convolutions import cudnn_layout
from memlens.simulation.kernels.temporaries import is_reduced

__all__ = ["replacement"]

Replaced = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Any]
"""From an operator, its arguments, and its fake results to results as CUDA's."""


def replacement(func: torch._ops.OpOverload) -> Replaced | None:
    """How an operator's results are to be changed; None: not at all."""
    return _REPLACED.get(func._schema.name)


def _laid_out(tensor: Tensor | None, layout: Any) -> Tensor | None:
    """A tensor as it is, in another layout: on the simulated device, without a copy that is counted."""
    if tensor is None or layout is torch.contiguous_format:
        return tensor
    return torch.empty_like(tensor, memory_format=layout)


def _convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """With cuDNN: it convolves with channels last if either input or weight has them so."""
    return _laid_out(result, cudnn_layout(args[0], args[1]))


def _convolution_backward(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    layout = cudnn_layout(args[1], args[2])
    of_input, of_weight, of_bias = result
    return _laid_out(of_input, layout), _laid_out(of_weight, layout), of_bias


def _on_host(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """The seeds of dropout; also where nothing is dropped."""
    out, log_sums, *_ = result
    return out, log_sums, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)


def _reduced_loss(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """The one number lies in the storage that was made for the loss of each element, and keeps it."""
    place = 3 if func._schema.name == "aten::binary_cross_entropy" else 2
    if not is_reduced(args, kwargs, place):
        return result
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
    return result.new_empty(shape).as_strided((), ())


_REPLACED: dict[str, Replaced] = {
    "aten::_scaled_dot_product_efficient_attention": _on_host,
    "aten::mse_loss": _reduced_loss,
    "aten::smooth_l1_loss": _reduced_loss,
    "aten::binary_cross_entropy": _reduced_loss,
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
}
