"""The buffer of a reduction that several blocks of threads share: sums, means, norms, extremes.

After aten/src/ATen/native/cuda/Reduce.cuh (`setReduceConfig`, `ReduceConfig::global_memory_size`) and
the order of dimensions in aten/src/ATen/TensorIterator.cpp. It is worth the trouble: where the gradient
of a bias is summed over tokens, torch asks for a multiple of what it uses (a product with `block().x`,
although the outputs are counted already): 138 MB for 8192 x 4096 numbers on 132 multiprocessors.
Tensors of more than 2^31 elements are taken as one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from memlens.simulation.kernels.card import multiprocessors, threads_per_multiprocessor

__all__ = ["reduction_bytes"]

_WARP = 32
_LEAST_VALUES, _MOST_VALUES = 16, 256
"""`min_values_per_thread`, `max_values_per_thread`."""


@dataclass(frozen=True)
class _Dimension:
    size: int
    stride: int
    """Of the input, in elements."""
    reduced: bool


def reduction_bytes(
    tensor: torch.Tensor,
    dims: Sequence[int] | None,
    accumulator_bytes: int,
    vector: int = 4,
) -> tuple[int, ...]:
    """Requests of one reduction: its buffer and its semaphores, or none.

    Args:
        tensor: what is reduced.
        dims: over which dimensions; None or empty: all.
        accumulator_bytes: size of what a thread accumulates in (`arg_t`).
        vector: elements loaded at once (`vt0`, `input_vec_size`).
    """
    count = tensor.numel()
    if count < _MOST_VALUES:
        return ()
    order = _ordered(tensor, dims)
    outputs = prod(each.size for each in order if not each.reduced)
    inputs = count // outputs
    if inputs < _MOST_VALUES:
        return ()  # no thread can have so many values that the work is split
    reduced = sum(each.reduced for each in order)
    along_inputs = reduced == len(order) or order[0].stride < order[reduced].stride
    fastest = order[0 if along_inputs else reduced].stride
    wide, high = (inputs, outputs) if along_inputs else (outputs, inputs)
    width = 1
    if fastest == 1:
        if along_inputs and wide >= 128 and reduced == 1:
            wide //= vector
        elif not along_inputs:
            width = _output_width(tensor, order, reduced)
            wide //= width

    # ReduceConfig::set_block_dimension
    most = (256 if tensor.dtype is torch.complex128 else 512) // width
    wide, high = min(_power_of_two(wide), most), min(_power_of_two(high), most)
    block_width = min(wide, _WARP)
    block_height = min(high, most // block_width)
    block_width = min(wide, most // block_height)

    step_input, step_output = (block_width, 1) if along_inputs else (1, block_width)
    if -(-inputs // step_input) < min(block_height * 16, _MOST_VALUES):
        return ()  # every warp has an output of its own
    step_input *= block_height
    values = -(-inputs // step_input)
    grid = -(-(outputs // width) // step_output)
    target = multiprocessors() * (threads_per_multiprocessor() // (block_width * block_height))
    if values < _MOST_VALUES or grid > target:
        return ()
    blocks = max(min(-(-target // grid), -(-values // _LEAST_VALUES)), -(-values // _MOST_VALUES))
    if blocks == 1:
        return ()
    buffer = accumulator_bytes * outputs * blocks
    if not along_inputs:
        buffer *= block_width * width
    return buffer, 4 * grid


def _ordered(tensor: torch.Tensor, dims: Sequence[int] | None) -> list[_Dimension]:
    """Dimensions as the iterator has them: reduced ones first, the fastest first, neighbours joined."""
    shape, strides = tensor.shape, tensor.stride()
    rank = len(shape)
    chosen = {dim % rank for dim in dims} if dims else set(range(rank))
    found = [
        _Dimension(size, stride, place in chosen)
        for place, (size, stride) in enumerate(zip(shape, strides, strict=True))
        if size != 1
    ]
    within = sorted((each for each in found if each.reduced), key=lambda each: each.stride)
    kept = [each for each in reversed(found) if not each.reduced]
    joined: list[_Dimension] = []
    for each in (*within, *kept):
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.reduced == each.reduced
            and last.size * last.stride == each.stride
        ):
            joined[-1] = _Dimension(last.size * each.size, last.stride, last.reduced)
        else:
            joined.append(each)
    return joined


def _output_width(tensor: torch.Tensor, order: list[_Dimension], reduced: int) -> int:
    """As `get_output_vec_size`: how many outputs a thread handles at once."""
    width = 4
    numbers = [tensor.storage_offset(), order[reduced].size]
    numbers += [each.stride for place, each in enumerate(order) if place != reduced]
    for number in numbers:
        while number % width:
            width //= 2
    return width


def _power_of_two(number: int) -> int:
    """The largest that is not larger (`last_pow2`)."""
    return 1 << (max(number, 1).bit_length() - 1)
