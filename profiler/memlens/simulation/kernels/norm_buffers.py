"""What the kernels of normalizations use inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from memlens.simulation.kernels.card import multiprocessors
from memlens.simulation.kernels.reductions import reduction_bytes

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "cudnn_batch_norm_backward",
    "group_norm_backward",
    "group_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm_backward",
]

_FLOAT = 4
_BLOCK_WIDTH = 32
_MANY_ROWS = 64 * 1024


def layer_norm_forward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A copy of an input that is not contiguous."""
    return _copies(args[0])


def layer_norm_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Copies, and partial gradients of weight and bias where there are many short rows."""
    gradient, input, shape, _, _, weight, bias, mask = args[:8]
    wanted = [each for each, needed in zip((weight, bias), mask[1:], strict=True) if needed]
    return _copies(input, gradient) + _partial_gradients(input, shape, wanted)


def rms_norm_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """As `layer_norm_backward`, whose kernels it uses."""
    gradient, input, shape, _, weight, mask = args[:6]
    return _copies(input, gradient) + _partial_gradients(input, shape, [weight] if mask[1] else [])


def _partial_gradients(
    input: Tensor, shape: Sequence[int], wanted: Sequence[Tensor | None]
) -> tuple[int, ...]:
    """As `LaunchGammaBetaBackwardCUDAKernel`."""
    width = prod(shape)
    rows = input.numel() // max(1, width)
    tensors = [each for each in wanted if each is not None]
    if not tensors or rows <= _MANY_ROWS or width // _BLOCK_WIDTH >= multiprocessors() // 2:
        return ()
    columns = -(-width // _BLOCK_WIDTH)
    blocks = min(_MANY_ROWS // 2 // columns, -(-rows // 32))
    partial = torch.empty((blocks, shape[-1]), dtype=tensors[0].dtype, device="meta")
    sizes = [blocks * shape[-1] * each.element_size() for each in tensors]
    sums = reduction_bytes(partial, (0,), _FLOAT)
    # The sums replace the gradients that were made for them, which are given back.
    sizes += [shape[-1] * each.element_size() for each in tensors]
    return (*sizes, *sums)


def group_norm_forward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Scale and shift of each channel of each sample."""
    input, _, _, samples, channels, pixels = args[:6]
    if pixels == 1 or not samples:
        return ()
    return (samples * channels * _accumulator(input),) * 2


def group_norm_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Sums per channel, and factors per channel and group."""
    input, weight = args[1], args[4]
    samples, channels, pixels, groups, mask = args[5:10]
    if not samples:
        return ()
    size = _accumulator(input)
    sizes = [samples * channels * size] * 2
    if mask[0]:
        if pixels > 1 and weight is not None:
            sizes.append(samples * channels * size)
        sizes += [samples * groups * size] * 2
    return tuple(sizes)


def batch_norm_forward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Staging of means and variances, where channels are last."""
    input, training = args[0], args[5]
    return _staging(input, 4, cooperative=True) if training else ()


def batch_norm_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Two sums per channel, and their staging, where channels are last."""
    input, training, mask = args[1], args[7], args[9]
    if not _channels_last(input) or not (training or mask[1] or mask[2]):
        return ()
    sums = (input.size(1) * _accumulator(input),) * 2
    return sums + _staging(input, 2, cooperative=True)


def cudnn_batch_norm_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A copy of the gradient where its layout is not that of the input."""
    input, gradient = args[0], args[1]
    return _copies(gradient, channels_last=_channels_last(input))


def _staging(input: Tensor, numbers: int, *, cooperative: bool) -> tuple[int, ...]:
    """As `flexible_launch_configs` of Normalization.cuh."""
    if not _channels_last(input):
        return ()
    channels = input.size(1)
    pixels = input.numel() // max(1, channels)
    wide = min(_power_of_two(channels), 32)
    high = min(_power_of_two(-(-pixels // 16)), 512 // wide)
    if wide * high != 512:
        wide = min(_power_of_two(channels), 512 // high)
    down = min(-(-pixels // (high * 16)), 128)
    if cooperative and down < 8:
        down = 1
    if down == 1:
        return ()
    return numbers * channels * down * _accumulator(input), 4 * -(-channels // wide)


def _power_of_two(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)


def _channels_last(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return tensor.dim() > 1 and tensor.stride(1) == 1
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _accumulator(tensor: Tensor) -> int:
    return 8 if tensor.dtype is torch.float64 else _FLOAT


def _copies(*tensors: Tensor, channels_last: bool = False) -> tuple[int, ...]:
    return tuple(
        tensor.numel() * tensor.element_size()
        for tensor in tensors
        if not (
            tensor.is_contiguous(memory_format=torch.channels_last)
            if channels_last and tensor.dim() == 4
            else tensor.is_contiguous()
        )
    )
