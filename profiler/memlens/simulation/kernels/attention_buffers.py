"""What the kernels of attention use inside, and give back when they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memlens.simulation.kernels.card import multiprocessors

__all__ = [
    "cudnn_backward",
    "cudnn_forward",
    "efficient_backward",
    "efficient_forward",
    "flash_backward",
    "flash_forward",
]

_FLOAT = 4
_HALVES = (torch.float16, torch.bfloat16)
_MOST_SPLITS = 128
_SEEDS = 16
"""Of dropout: a seed and an offset, beside those that are kept."""


def flash_forward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Partial results of a split over keys, if the job cannot fill the card (`set_params_splitkv`)."""
    query, key = args[0], args[1]
    dropout_p = args[3] if len(args) > 3 else 0.0
    if dropout_p:
        return (_SEEDS,)
    batch, heads, queries, head = query.shape
    keys, key_heads = key.size(2), key.size(1)
    if queries == 1 and heads > key_heads:  # seqlenq_ngroups_swapped
        queries, heads = heads // key_heads, key_heads
    per_block = 256 if head <= 64 else 128 if head <= 128 else 64
    splits = _splits(
        batch * heads * -(-queries // 64), 2 * multiprocessors(), -(-keys // per_block)
    )
    if splits == 1:
        return ()
    rows = splits * batch * heads * queries
    return _FLOAT * rows, _FLOAT * rows * _rounded_head(head)


def flash_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """Copies in the kernel's layout, sums in float32, gradients of every head of a group (`mha_bwd`)."""
    gradient, query, key, _, out = args[:5]
    batch, heads, queries, head = query.shape
    keys, key_heads = key.size(2), key.size(1)
    rounded_queries = -(-queries // 128) * 128
    sizes = [_copy(gradient), _copy(out), _FLOAT * batch * heads * rounded_queries]
    sums = _FLOAT * batch * rounded_queries * heads * _rounded_head(head)
    if _deterministic():
        sums *= -(-multiprocessors() // (batch * heads))
    sizes.append(sums)
    if key_heads != heads:
        expanded = batch * keys * heads * head * query.element_size()
        sizes += [expanded, expanded]
    return tuple(size for size in sizes if size)


def efficient_forward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], outputs: Any
) -> tuple[int, ...]:
    """An output in float32 where a head does not fit one block (`kNeedsOutputAccumulatorBuffer`)."""
    query, _, value = args[:3]
    if query.dtype not in _HALVES or max(query.size(3), value.size(3)) <= 128:
        return ()
    return (_FLOAT * outputs[0].numel(),)


class _Tiles(NamedTuple):
    """A kernel of kernels/cutlassB.h for compute capability 8.0 and later."""

    queries: int
    """`kBlockSizeI`."""
    keys: int
    """`kBlockSizeJ`."""
    largest_head: int
    """`kMaxK`."""


# In torch's order; kernels that only differ in that sequences are aligned have the same tiles. The last
# of each list is for cards whose shared memory is too small for the one before, and left out.
_TILES = {
    # is_half, dropout
    (True, False): (
        _Tiles(64, 64, 32),
        _Tiles(64, 64, 64),
        _Tiles(128, 64, 96),
        _Tiles(128, 128, 128),
        _Tiles(128, 64, 65536),
    ),
    (True, True): (
        _Tiles(64, 64, 32),
        _Tiles(64, 64, 64),
        _Tiles(128, 128, 128),
        _Tiles(128, 64, 65536),
    ),
    (False, False): (
        _Tiles(64, 64, 32),
        _Tiles(64, 64, 64),
        _Tiles(128, 64, 128),
        _Tiles(128, 64, 65536),
    ),
}
_TILES[False, True] = _TILES[False, False]


def efficient_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A copy of the gradient, its products with the output, and the workspace of kernel_backward.h."""
    gradient, query, key, value, _, out = args[:6]
    dropout_p = args[9]
    is_half = query.dtype in _HALVES
    batch, heads, queries, head = query.shape
    keys, value_head = key.size(2), value.size(3)
    sums = _FLOAT * batch * heads * queries
    sizes = [_copy(gradient), sums]
    if not is_half:  # kKernelComputesDelta is false: the sums are made of this, and laid out anew
        sizes += [_FLOAT * out.numel(), sums]
    tiles = next(
        each
        for each in _TILES[is_half, bool(dropout_p)]
        if each.largest_head >= max(head, value_head)
    )
    # GradQTempStorage: a lock, a counter, padding, and the tile.
    workspace = -(-queries // tiles.queries) * -(-head // tiles.keys)
    workspace *= 16 + _FLOAT * tiles.queries * tiles.keys
    if is_half and tiles.largest_head > tiles.queries:  # kNeedsAccumGradK, -V
        splits = -(-keys // tiles.keys)
        if (batch * heads >= 256 and keys <= 2 * tiles.keys) or _deterministic():
            splits = 1
        splits = max(1, min(splits, 200 // (batch * heads)))
        for size in (head, value_head):
            workspace += _FLOAT * splits * tiles.keys * (-(-size // tiles.queries) * tiles.queries)
    sizes.append(batch * heads * (-(-workspace // 16) * 16))
    return tuple(size for size in sizes if size)


_CUDNN_OWN = 256
"""Of any workspace of cuDNN's attention (measured: tools/gpu_operators.md)."""


def cudnn_forward(
    _args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A workspace."""
    return (_CUDNN_OWN,)


def cudnn_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """A workspace: gradients of queries, and a sum per query, in float32; of keys and values, by head.

    After `get_fe_workspace_size_node` in cudnn-frontend's node/scaled_dot_product_flash_attention.h.
    """
    query, key, value = args[1:4]
    workspace = _FLOAT * (query.numel() + query.numel() // query.size(-1)) + _CUDNN_OWN
    for tensor in (key, value):
        if tensor.size(1) != query.size(1):
            each_head = tensor.numel() // tensor.size(1) * query.size(1)
            workspace += each_head * tensor.element_size()
    return (workspace,)


def _copy(tensor: Tensor) -> int:
    """Bytes of a copy in the layout of the kernels (batch, sequence, head), where it has another."""
    expected = 1
    for dim in (3, 1, 2, 0):
        if tensor.size(dim) != 1 and tensor.stride(dim) != expected:
            return tensor.numel() * tensor.element_size()
        expected *= tensor.size(dim)
    return 0


def _rounded_head(head: int) -> int:
    rounded = -(-head // 32) * 32
    return rounded if rounded < 224 else 256


def _deterministic() -> bool:
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def _splits(blocks: int, places: int, key_blocks: int) -> int:
    """As `num_splits_heuristic` of flash_api.cpp."""
    if blocks >= 0.8 * places:
        return 1
    most = min(_MOST_SPLITS, places, key_blocks)
    efficiency: dict[int, float] = {}
    for splits in range(1, most + 1):
        if splits > 1 and -(-key_blocks // splits) == -(-key_blocks // (splits - 1)):
            continue
        waves = blocks * splits / places
        efficiency[splits] = waves / -(-blocks * splits // places)
    best = max(efficiency.values(), default=0.0)
    return next((splits for splits, each in efficiency.items() if each >= 0.85 * best), 1)
