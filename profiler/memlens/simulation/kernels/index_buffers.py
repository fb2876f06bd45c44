"""What gathers and scatters by index use inside: their gradients sort the indices first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from memlens.simulation.kernels.card import capability

__all__ = ["embedding_backward", "index_put", "masked_scatter", "sort_bytes", "sort_pairs_bytes"]

_LONG = 8
_FEW_INDICES = 3072
_ROWS_PER_THREAD = 10


def embedding_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Sorted indices, and the sum of each piece of a run of equal ones, in float32.

    The sort's own buffers are gone by the time the sums are made.
    """
    gradient, indices, rows, _, scale_by_frequency = args[:5]
    count, width = indices.numel(), gradient.size(-1)
    copies = [_copy(indices), _copy(gradient)]
    if count <= _FEW_INDICES and not scale_by_frequency:
        return tuple(size for size in copies if size)
    index = indices.element_size()
    segments = min(count, rows)
    pieces = count // _ROWS_PER_THREAD + segments
    accumulator = 8 if gradient.dtype is torch.float64 else 4
    sizes = [*copies, *[count * index] * (3 if scale_by_frequency else 2)]
    sizes += [count * index, _LONG, segments * index, segments * index, _LONG, pieces * index]
    sizes.append(pieces * width * accumulator)
    return tuple(size for size in sizes if size)


def index_put(args: Sequence[Any], kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """With `accumulate`, as in the gradient of an index: a sort of the flat indices."""
    target, indices, values = args[:3]
    accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    if not (accumulate or torch.are_deterministic_algorithms_enabled()):
        return ()
    given = [each for each in indices if each is not None]
    if any(each.dtype in (torch.bool, torch.uint8) for each in given):
        # How many are set is not known here: as many as there are values for.
        dims = sum(each.dim() for each in given)
        count = values.numel() // max(1, prod(target.shape[dims:]))
        wanted = values.numel()
    else:
        shape = torch.broadcast_shapes(*[each.shape for each in given])
        count = prod(shape)
        rest = prod(
            size
            for place, size in enumerate(target.shape)
            if place >= len(indices) or indices[place] is None
        )
        wanted = count * rest
    if not count:
        return ()
    sizes = [0 if target.is_contiguous() else _bytes(target), count * _LONG]
    if values.numel() < wanted or not values.is_contiguous():
        sizes.append(wanted * values.element_size())
    sizes += [count * _LONG] * 3  # sorted, their places, and the range that is sorted along
    sizes.append(sort_pairs_bytes(count, _LONG, _LONG, _bits(target, indices)))
    return tuple(size for size in sizes if size)


def _bits(target: Tensor, indices: Sequence[Tensor | None]) -> int:
    """Of the largest flat index."""
    indexed = (size for size, each in zip(target.shape, indices, strict=False) if each is not None)
    return max(1, prod(indexed).bit_length())


def masked_scatter(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A running count of what is masked."""
    return (args[0].numel() * _LONG,) if args[0].numel() else ()


def sort_bytes(count: int, key_bytes: int) -> tuple[int, ...]:
    """A sort of one row, with the places that its values came from: the range of them, and CUB's."""
    return (count * _LONG, sort_pairs_bytes(count, key_bytes, _LONG)) if count else ()


def sort_pairs_bytes(count: int, key_bytes: int, value_bytes: int, bits: int | None = None) -> int:
    """Temporary storage of `cub::DeviceRadixSort::SortPairs`.

    After cub/device/dispatch/dispatch_radix_sort.cuh (`InvokeOnesweep`, `Policy800`), and as measured on
    compute capability 9.0, whose tiles are larger.

    Args:
        count: pairs.
        key_bytes: of a key.
        value_bytes: of a value.
        bits: of the keys that are sorted by; None: all.
    """
    dominant = max(key_bytes, value_bytes)
    if count <= 256 * max(1, 19 * 4 // dominant):
        return 1  # one tile
    tile = 384 * max(1, (24 if capability() >= (9, 0) else 21) * 4 // dominant)
    passes = -(-(bits or 8 * key_bytes) // 8)
    parts = (
        passes * 256 * 8,
        -(-count // tile) * 256 * 4,
        count * key_bytes,
        count * value_bytes,
        passes * 4,
    )
    return sum(-(-part // 256) * 256 for part in parts) + 255


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy(tensor: Tensor) -> int:
    return 0 if tensor.is_contiguous() else _bytes(tensor)
