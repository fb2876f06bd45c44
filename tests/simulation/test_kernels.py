"""What CUDA's kernels choose, use and return, worked out by hand from torch's source."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlens.simulation.kernels.choice import choose_backend
from memlens.simulation.kernels.index_buffers import sort_pairs_bytes
from memlens.simulation.kernels.reductions import reduction_bytes
from memlens.simulation.kernels.temporaries import LIMITS, TABLE, temporaries
from memlens.simulation.memory import GIVEN_BACK

ATEN = torch.ops.aten
A100, RTX_3090, T4, H100 = (8, 0), (8, 6), (7, 5), (9, 0)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 132 multiprocessors, as the simulation's stand-ins tell it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: H100)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)


def tensor(
    *shape: int, dtype: torch.dtype = torch.bfloat16, order: Sequence[int] | None = None
) -> torch.Tensor:
    """A tensor without data, whose dimensions lie in some order."""
    if order is None:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty_permuted(shape, tuple(order), dtype=dtype, device="meta")


def heads(
    batch: int, heads: int, length: int, size: int, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """Heads as a model's projection leaves them: the sequence outside."""
    return tensor(batch, heads, length, size, dtype=dtype, order=(0, 2, 1, 3))


def used(func: Any, *args: Any, outputs: Any = None, **kwargs: Any) -> tuple[int, ...]:
    return temporaries(func, args, kwargs, outputs)


# -- attention: which kernel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype", "size", "expected"),
    [
        (A100, torch.bfloat16, 128, SDPBackend.FLASH_ATTENTION),
        (H100, torch.bfloat16, 128, SDPBackend.CUDNN_ATTENTION),
        (H100, torch.bfloat16, 256, SDPBackend.FLASH_ATTENTION),  # more than cuDNN takes
        (A100, torch.bfloat16, 80, SDPBackend.FLASH_ATTENTION),
        (A100, torch.float32, 64, SDPBackend.EFFICIENT_ATTENTION),
        (A100, torch.float32, 66, SDPBackend.MATH),  # not a multiple of four
        (A100, torch.float64, 64, SDPBackend.MATH),
        (T4, torch.float16, 64, SDPBackend.EFFICIENT_ATTENTION),
        (T4, torch.bfloat16, 64, SDPBackend.MATH),
        (A100, torch.bfloat16, 264, SDPBackend.EFFICIENT_ATTENTION),
    ],
)
def test_choice_by_card_and_type(
    capability: tuple[int, int], dtype: torch.dtype, size: int, expected: SDPBackend
) -> None:
    query = heads(2, 4, 128, size, dtype)
    assert choose_backend(query, query, query, capability=capability) is expected


def test_choice_by_mask() -> None:
    query = heads(2, 4, 128, 64)
    mask = tensor(128, 128, dtype=torch.bool)
    choice = choose_backend(query, query, query, mask, capability=A100)
    assert choice is SDPBackend.EFFICIENT_ATTENTION
    choice = choose_backend(query, query, query, mask, capability=H100)
    assert choice is SDPBackend.CUDNN_ATTENTION
    # A mask that is broadcast over keys in memory, which no fused kernel reads.
    spread = tensor(128, 1, dtype=torch.bool).expand(128, 128)
    assert choose_backend(query, query, query, spread, capability=H100) is SDPBackend.MATH


def test_choice_by_grouped_heads() -> None:
    query, key = heads(2, 8, 128, 64), heads(2, 2, 128, 64)
    choose = choose_backend(query, key, key, enable_gqa=True, capability=A100)
    assert choose is SDPBackend.FLASH_ATTENTION
    assert choose_backend(query, key, key, capability=A100) is SDPBackend.MATH
    mask = tensor(128, 128)
    choose = choose_backend(query, key, key, mask, enable_gqa=True, capability=A100)
    assert choose is SDPBackend.MATH  # the efficient kernel knows no groups


def test_choice_by_dropout_and_cudnn() -> None:
    query = heads(2, 4, 128, 64)
    choose = choose_backend(query, query, query, None, 0.1, capability=H100)
    assert choose is SDPBackend.FLASH_ATTENTION  # cuDNN drops multiples of a sixteenth
    choose = choose_backend(query, query, query, None, 0.125, capability=H100)
    assert choose is SDPBackend.CUDNN_ATTENTION
    choose = choose_backend(query, query, query, capability=H100, cudnn_version=91002)
    assert choose is SDPBackend.FLASH_ATTENTION


def test_choice_by_what_backward_needs() -> None:
    query = heads(2, 4, 128, 224)
    choose = choose_backend(query, query, query, capability=RTX_3090)
    assert choose is SDPBackend.FLASH_ATTENTION
    query.requires_grad_()
    choose = choose_backend(query, query, query, capability=RTX_3090)
    assert choose is SDPBackend.EFFICIENT_ATTENTION
    with torch.no_grad():
        choose = choose_backend(query, query, query, capability=RTX_3090)
    assert choose is SDPBackend.FLASH_ATTENTION


def test_choice_by_causal_rectangle_and_rank() -> None:
    query, key = heads(2, 4, 128, 64), heads(2, 4, 256, 64)
    choose = choose_backend(query, key, key, is_causal=True, capability=A100)
    assert choose is SDPBackend.EFFICIENT_ATTENTION
    flat = tensor(8, 128, 64)
    assert choose_backend(flat, flat, flat, capability=A100) is SDPBackend.MATH


def test_choice_obeys_the_switches() -> None:
    query = heads(2, 4, 128, 64)
    with sdpa_kernel(SDPBackend.MATH):
        assert choose_backend(query, query, query, capability=H100) is SDPBackend.MATH
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        choose = choose_backend(query, query, query, capability=H100)
    assert choose is SDPBackend.EFFICIENT_ATTENTION
    order = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]
    with sdpa_kernel(order, set_priority=True):
        choose = choose_backend(query, query, query, capability=H100)
    assert choose is SDPBackend.EFFICIENT_ATTENTION
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        single = heads(2, 4, 128, 64, torch.float32)
        assert choose_backend(single, single, single, capability=A100) is SDPBackend.ERROR


# -- attention: what it uses -------------------------------------------------------------------

_FLASH = ATEN._scaled_dot_product_flash_attention.default
_FLASH_BACKWARD = ATEN._scaled_dot_product_flash_attention_backward.default
_EFFICIENT = ATEN._scaled_dot_product_efficient_attention.default
_EFFICIENT_BACKWARD = ATEN._scaled_dot_product_efficient_attention_backward.default
_CUDNN_BACKWARD = ATEN._scaled_dot_product_cudnn_attention_backward.default


def test_flash_splits_keys_where_the_card_is_not_full() -> None:
    # 12 heads of 16 blocks of queries for 264 places; four blocks of keys; four splits fill 97 %.
    small = heads(1, 12, 1024, 64)
    rows = 4 * 1 * 12 * 1024
    assert used(_FLASH, small, small, small, 0.0, True, False) == (4 * rows, 4 * rows * 64)
    assert used(_FLASH, small, small, small, 0.1, True, False) == (16,)  # a seed and an offset
    large = heads(8, 12, 1024, 64)
    assert used(_FLASH, large, large, large, 0.0, True, False) == ()


def test_flash_backward() -> None:
    query, key = heads(2, 8, 100, 80), heads(2, 2, 100, 80)
    softmax = torch.empty(2, 8, 100, device="meta")
    args = (query, query, key, key, query, softmax)
    sums = (4 * 2 * 8 * 128, 4 * 2 * 128 * 8 * 96)
    expanded = 2 * 2 * 100 * 8 * 80
    assert used(_FLASH_BACKWARD, *args) == (*sums, expanded, expanded)
    other = tensor(2, 8, 100, 80)  # heads outside: both are copied
    args = (other, query, query, query, other, softmax)
    assert used(_FLASH_BACKWARD, *args) == (expanded, expanded, *sums)


def test_efficient_keeps_wide_heads_in_float32() -> None:
    wide, narrow = heads(2, 4, 128, 160), heads(2, 4, 128, 128)
    args = (wide, wide, wide, None, True)
    assert used(_EFFICIENT, *args, outputs=(wide,)) == (4 * 2 * 4 * 128 * 160,)
    assert used(_EFFICIENT, narrow, narrow, narrow, None, True, outputs=(narrow,)) == ()
    single = heads(2, 4, 128, 160, torch.float32)
    assert used(_EFFICIENT, single, single, single, None, True, outputs=(single,)) == ()


def test_efficient_backward() -> None:
    def backward(query: torch.Tensor, dropout_p: float = 0.0) -> tuple[int, ...]:
        args = (query, query, query, query, None, query, None, None, None, dropout_p, [True] * 4)
        return used(_EFFICIENT_BACKWARD, *args)

    # Tiles of 64 x 64, which keep gradients of keys in registers; two down, one across.
    workspace = 2 * 4 * 2 * (16 + 4 * 64 * 64)
    assert backward(heads(2, 4, 128, 64)) == (4 * 2 * 4 * 128, workspace)
    # In float32 products with the output are made beside, and their sums are laid out anew.
    sums = 4 * 2 * 4 * 128
    expected = (sums, sums * 64, sums, workspace)
    assert backward(heads(2, 4, 128, 64, torch.float32)) == expected


def test_cudnn_backward() -> None:
    query, key = heads(2, 4, 128, 64), heads(2, 2, 96, 64)
    workspace = 4 * 2 * 4 * 128 * 65 + 256
    assert used(_CUDNN_BACKWARD, query, query, query, query) == (workspace,)
    # Gradients of keys and values, for each head of a group.
    grouped = workspace + 2 * (2 * 4 * 96 * 64 * 2)
    assert used(_CUDNN_BACKWARD, query, query, key, key) == (grouped,)


# -- reductions --------------------------------------------------------------------------------


def test_gradient_of_a_bias() -> None:
    """8192 tokens, 4096 outputs: 66 blocks share one, and the buffer is 128 times what they use."""
    gradient = tensor(8192, 4096)
    assert reduction_bytes(gradient, (0,), 4) == (4 * 4096 * 66 * 32 * 4, 4 * 32)
    total = used(ATEN.sum.dim_IntList, gradient, [0], True, outputs=tensor(1, 4096))
    assert sum(total) == 138_412_160


def test_as_a_real_card_was_seen_to_do() -> None:
    """Requests that C++ stacks name in a recorded step of a transformer (transformer_full_step)."""
    logits = tensor(512, 10000, dtype=torch.float32, order=(1, 0))
    assert reduction_bytes(logits, (1,), 4) == (41_156_608, 16)
    result = tensor(512, 1, dtype=torch.float32)
    index = tensor(512, 1, dtype=torch.int64)
    of = ATEN.max.dim
    assert used(of, logits, 1, True, outputs=(result, index)) == (164_626_432, 16)
    hidden = tensor(512, 2560, dtype=torch.float32, order=(1, 0))
    assert reduction_bytes(hidden, (1,), 4) == (10_485_760, 16)
    # The gradient of an index into 10000 rows: values in another layout, and a sort of one tile.
    table = tensor(10000, 2560, dtype=torch.float32)
    tokens = tensor(512, dtype=torch.int64)
    assert used(ATEN._index_put_impl_.default, table, [tokens], hidden, True, True) == (
        4096, 5_242_880, 4096, 4096, 4096, 1,
    )  # fmt: skip


def test_reductions_without_a_buffer() -> None:
    assert reduction_bytes(tensor(8192, 4096), (1,), 4) == ()  # a block has a row
    assert reduction_bytes(tensor(100), (0,), 4) == ()
    assert reduction_bytes(tensor(8192, 2, 4096), (1,), 4) == ()


def test_sum_of_all() -> None:
    # 2^24 numbers, four at once by 512 threads: 32768 values each, and 528 blocks fill the card.
    assert reduction_bytes(tensor(4096, 4096), None, 4) == (4 * 528, 4)


def test_dimensions_are_joined_and_ordered() -> None:
    """What is reduced is one dimension, however it is cut."""
    flat, cut = tensor(8192, 4096), tensor(4, 2048, 1, 4096)
    assert reduction_bytes(cut, (0, 1, 2), 4) == reduction_bytes(flat, (0,), 4)
    turned = tensor(4096, 8192, order=(1, 0))
    assert reduction_bytes(turned, (1,), 4) == reduction_bytes(flat, (0,), 4)


def test_sum_casts_first() -> None:
    mask = tensor(64, 64, dtype=torch.bool)
    result = tensor(64, dtype=torch.int64)
    assert used(ATEN.sum.dim_IntList, mask, [1], outputs=result) == (64 * 64 * 8,)
    halves, single = tensor(64, 64), tensor(64, dtype=torch.float32)
    assert used(ATEN.sum.dim_IntList, halves, [1], outputs=single) == ()


def test_larger_of_two_is_no_reduction() -> None:
    large = tensor(4096, 4096)
    assert used(ATEN.max.other, large, large, outputs=large) == ()
    assert used(ATEN.max.default, large, outputs=tensor()) != ()


def test_norms_of_many() -> None:
    tensors = [tensor(1000), tensor(200_000)]  # four chunks of 65536
    results = [tensor(), tensor()]
    assert used(ATEN._foreach_norm.Scalar, tensors, outputs=results) == (2 * 4 * 4,)


# -- indices -----------------------------------------------------------------------------------


def test_gradient_of_an_embedding() -> None:
    gradient = tensor(2, 4096, 4096)
    tokens = tensor(2, 4096, dtype=torch.int64)
    of = ATEN.embedding_dense_backward.default
    piece = 8192 // 10 + 8192
    assert used(of, gradient, tokens, 32000, -1, False) == (
        65536, 65536, 65536, 8, 65536, 65536, 8, piece * 8, piece * 4096 * 4,
    )  # fmt: skip
    few = tensor(3072, dtype=torch.int64)
    assert used(of, tensor(3072, 64), few, 32000, -1, False) == ()


def test_gradient_of_an_index() -> None:
    target, index = tensor(1000, 16, dtype=torch.float32), tensor(5000, dtype=torch.int64)
    values = tensor(5000, 16, dtype=torch.float32)
    of = ATEN._index_put_impl_.default
    sort = 2 * 256 * 8 + 2048 + 2 * 40192 + 256 + 255  # by the ten bits of the largest index
    assert used(of, target, [index], values, True, True) == (*[40000] * 4, sort)
    assert used(of, target, [index], values, False, True) == ()
    one = tensor(1, 16, dtype=torch.float32)
    expected = (40000, 5000 * 16 * 4, *[40000] * 3, sort)
    assert used(of, target, [index], one, True, True) == expected


def test_sorting() -> None:
    assert sort_pairs_bytes(2304, 8, 8) == 1
    assert sort_pairs_bytes(5000, 8, 8) == 8 * 256 * 8 + 2048 + 2 * 40192 + 256 + 255
    row, rows = tensor(5000, dtype=torch.float32), tensor(2, 5000, dtype=torch.float32)
    assert used(ATEN.sort.default, row) == (40000, sort_pairs_bytes(5000, 4, 8))
    assert used(ATEN.sort.default, rows) == ()


def test_losses() -> None:
    """The loss of each element, and what its sum takes, unless it is not reduced."""
    prediction, target = tensor(4096, 1024), tensor(4096, 1024)
    whole = 4096 * 1024 * 2
    sums = reduction_bytes(prediction, None, 4)
    assert len(sums) == 2
    assert used(ATEN.mse_loss.default, prediction, target) == (whole, *sums)
    assert used(ATEN.mse_loss.default, prediction, target, 0) == ()
    assert used(ATEN.binary_cross_entropy.default, prediction, target, None, 2) == (2, *sums)


def test_gradient_of_softmax() -> None:
    rows = tensor(64, 128, dtype=torch.float32)
    assert used(ATEN._softmax_backward_data.default, rows, rows, 1, rows.dtype) == (64 * 128 * 4,)
    assert used(ATEN._log_softmax_backward_data.default, rows, rows, 1, rows.dtype) == ()


# -- normalization -----------------------------------------------------------------------------


def test_gradients_of_layer_norm() -> None:
    weight, statistics = tensor(64), tensor(131072, 1, dtype=torch.float32)
    rows = tensor(131072, 64)
    of = ATEN.native_layer_norm_backward.default
    args = (rows, rows, [64], statistics, statistics, weight, weight, [True] * 3)
    partial = 4096 * 64 * 2
    assert used(of, *args) == (partial, partial, 128, 128, 4 * 64 * 32 * 16 * 4, 4)
    few = tensor(4096, 64)
    assert used(of, few, few, *args[2:]) == ()
    turned = tensor(64, 64, order=(1, 0))
    assert used(of, few[:64], turned, *args[2:]) == (64 * 64 * 2,)


def test_group_norm() -> None:
    images = tensor(4, 32, 8, 8)
    forward, backward = ATEN.native_group_norm.default, ATEN.native_group_norm_backward.default
    weight = tensor(32)
    assert used(forward, images, weight, weight, 4, 32, 64, 8, 1e-5) == (512, 512)
    args = (images, images, tensor(4, 8), tensor(4, 8), weight, 4, 32, 64, 8, [True] * 3)
    assert used(backward, *args) == (512, 512, 512, 128, 128)


def test_batch_norm_with_channels_last() -> None:
    images = tensor(32, 64, 56, 56, order=(0, 2, 3, 1))
    of = ATEN.native_batch_norm.default
    # 100352 pixels, 16 rows of threads that take 16 each: 128 blocks down at most, two across.
    args = (None, None, None, None, True, 0.1, 1e-5)
    assert used(of, images, *args) == (4 * 64 * 128 * 4, 8)
    assert used(of, tensor(32, 64, 56, 56), *args) == ()


# -- products and convolutions -----------------------------------------------------------------


def test_matrices_that_cublas_cannot_read() -> None:
    plain = tensor(64, 32)
    assert used(ATEN.mm.default, plain, plain.t()) == ()
    assert used(ATEN.mm.default, tensor(1, 1).expand(1, 1).as_strided((1, 64), (0, 1)), plain) == ()
    assert used(ATEN.mm.default, plain, tensor(1, 1).expand(32, 64)) == (32 * 64 * 2,)
    assert used(ATEN.mm.default, tensor(64, 64)[:, ::2], plain.t()) == (64 * 32 * 2,)


def test_convolutions_copy_what_lies_otherwise() -> None:
    images, weight = tensor(2, 8, 16, 16), tensor(4, 8, 3, 3)
    last = tensor(2, 8, 16, 16, order=(0, 2, 3, 1))
    of = ATEN.convolution.default
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    gradient = tensor(2, 4, 16, 16)
    assert used(of, last, weight, *rest, outputs=gradient) == (4 * 8 * 9 * 2,)
    assert used(of, images, weight, *rest, outputs=gradient) == ()  # too small
    backward = (gradient, last, weight, [4], *rest[1:], [False, True, False])
    assert used(ATEN.convolution_backward.default, *backward) == (2 * 4 * 256 * 2,)


def test_convolutions_lay_out_anew() -> None:
    """All three tensors in cuDNN's own layout, with eight channels where there are four."""
    images, weight, result = tensor(64, 8, 128, 128), tensor(68, 8, 3, 3), tensor(64, 68, 128, 128)
    of, rest = ATEN.convolution.default, (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    result_bytes = 2 * result.numel() // 68 * 72
    workspace = images.nbytes + weight.nbytes + result_bytes
    assert used(of, images, weight, *rest, outputs=result) == (workspace,)
    assert used(of, images[:1], weight, *rest, outputs=result[:1]) == ()  # too little to do
    assert used(of, images.double(), weight.double(), *rest, outputs=result) == ()
    pointwise = tensor(680, 8, 1, 1)
    assert used(of, images, pointwise, *rest, outputs=result) == ()  # a product
    last = images.to(memory_format=torch.channels_last)
    assert used(of, last, weight, *rest, outputs=result) == (weight.nbytes,)
    # In float32, kernels of 3 x 3 write the result as it is to lie.
    full = images.float(), weight.float()
    expected = (sum(each.nbytes for each in full),)
    assert used(of, *full, *rest, outputs=result.float()) == expected
    # The gradient of the weight is summed in float32, in 132 parts.
    back = ATEN.convolution_backward.default
    args = (result, images, weight, None, *rest[1:])
    of_weight = workspace + 132 * 4 * weight.numel()
    assert used(back, *args, [False, True, False]) == (of_weight,)
    assert used(back, *args, [True, True, False]) == (workspace, GIVEN_BACK, of_weight)


def test_convolutions_without_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weight = (
        tensor(64, 8, 128, 128, dtype=torch.float32),
        tensor(64, 8, 3, 3, dtype=torch.float32),
    )
    args = (images, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    result = tensor(64, 64, 128, 128, dtype=torch.float32)

    def is_laid_out() -> bool:
        return bool(used(ATEN.convolution.default, *args, outputs=result))

    assert is_laid_out()
    with torch.backends.cudnn.flags(enabled=False):
        assert not is_laid_out()
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    assert not is_laid_out()
    conv.fp32_precision = before
    assert is_laid_out()
    with monkeypatch.context() as older:  # the way to say so before there was that
        older.setattr(torch.backends.cudnn, "allow_tf32", False)
        assert not is_laid_out()
    assert is_laid_out()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: T4)
    assert not is_laid_out()


def test_depthwise_convolutions_spread_channels() -> None:
    """With channels last, in float32: a channel takes four times its place, of input and gradient."""
    images = tensor(32, 96, 56, 56, dtype=torch.float32, order=(0, 2, 3, 1))
    weight = tensor(96, 1, 7, 7, dtype=torch.float32).to(memory_format=torch.channels_last)
    rest = ([1, 1], [3, 3], [1, 1], False, [0, 0], 96, [True, True, False])
    of = ATEN.convolution_backward.default
    # 318,219,895 bytes on an H200.
    assert used(of, images, images, weight, None, *rest) == (8 * images.nbytes + 10_000_000,)
    few = images[..., :14, :14].contiguous(memory_format=torch.channels_last)
    assert used(of, few, few, weight, None, *rest) == ()


def test_copies_between_host_and_device() -> None:
    host = torch.empty(64, 32, dtype=torch.float32)
    device = tensor(32, 64, dtype=torch.float32).t()
    copy = ATEN.copy_.default
    assert used(copy, host, device) == (64 * 32 * 4,)
    assert used(copy, host, tensor(64, 32, dtype=torch.float32)) == ()
    assert used(copy, tensor(64, 32), host, True) == (64 * 32 * 4,)
    assert used(copy, tensor(64, 32), host) == ()
    assert used(copy, tensor(64, 32), device) == ()


# -- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*TABLE, *LIMITS}))
def test_rows_are_of_operators(name: str) -> None:
    assert hasattr(ATEN, name)


def test_other_operators_use_nothing() -> None:
    assert used(ATEN.add.Tensor, tensor(4), tensor(4)) == ()
    assert used(ATEN.empty.memory_format, [4]) == ()


def test_linear_algebra() -> None:
    matrix = tensor(512, 64, dtype=torch.float32)
    assert used(ATEN._linalg_svd.default, matrix) == (512 * 64 * 4, 4)
    assert used(ATEN.linalg_qr.default, matrix) == (64 * 4,)
    assert used(ATEN.linalg_qr.default, matrix, "r") == (64 * 4, 512 * 64 * 4)
    assert used(ATEN._linalg_eigh.default, matrix[:64]) == (4,)


# -- on the simulated device -------------------------------------------------------------------

_BEGIN = """
from types import SimpleNamespace
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from memlens.simulation.backend import DEVICE_TYPE, DataLess, register_accelerator
from memlens.simulation.kernels.attention import scaled_dot_product_attention
from memlens.simulation.kernels.composites import keep_whole
from memlens.simulation.kernels.normalization import batch_norm
from memlens.simulation.kernels.replaced import replacement

register_accelerator()
keep_whole()
card = SimpleNamespace(multi_processor_count=132)
torch.cuda.get_device_properties = lambda device=None: card

class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        change = replacement(func)
        if change is not None:
            result = change(func, args, kwargs or {}, result)
        name = func._schema.name.partition("::")[2]
        if func.namespace == "aten" and name not in ("detach", "t", "view", "transpose", "expand"):
            self.names.append(name)
        return result

def made(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, device=DEVICE_TYPE, dtype=dtype, requires_grad=True)

def names(call, gradient=True):
    with Names() as mode:
        out = call()
        if gradient:
            out.backward(torch.empty_like(out))
    return mode.names
"""


def simulate(code: str) -> str:
    """Run code on tensors without data; the accelerator can be registered once per process."""
    program = _BEGIN + "with DataLess():\n" + textwrap.indent(textwrap.dedent(code), "    ")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_attention_is_one_operator_each_way() -> None:
    out = simulate(
        """
        for capability in ((9, 0), (8, 0)):
            torch.cuda.get_device_capability = lambda device=None: capability
            query, key = made(2, 8, 128, 64), made(2, 2, 128, 64)
            print(*names(lambda: scaled_dot_product_attention(query, key, key, enable_gqa=True)))
        query = made(2, 8, 128, 60)
        print(*names(lambda: scaled_dot_product_attention(query, query, query), gradient=False))
        query = made(2, 8, 100, 64)
        mask = torch.ones(100, 100, dtype=torch.bool, device=DEVICE_TYPE)
        print(*names(lambda: scaled_dot_product_attention(query, query, query, mask), gradient=False))
        query = made(2, 8, 100, 64, dtype=torch.float64)
        out = scaled_dot_product_attention(query, query, query, is_causal=True)
        out.sum().backward()
        print(out.dtype, tuple(query.grad.shape))
        """
    ).splitlines()
    assert out[0].split() == [
        "_scaled_dot_product_cudnn_attention",
        "empty_like",
        "_scaled_dot_product_cudnn_attention_backward",
        "add",  # key and value are one tensor here
    ]
    assert out[1].split() == [
        "_scaled_dot_product_flash_attention",
        "empty_like",
        "_scaled_dot_product_flash_attention_backward",
        "add",
    ]
    assert out[2].split() == [
        *["constant_pad_nd"] * 3,
        "_scaled_dot_product_flash_attention",
        "slice",
    ]
    assert out[3].split() == [
        *["scalar_tensor"] * 2,
        "where",
        "constant_pad_nd",  # rows of 100 are not a multiple of eight
        "slice",
        "_scaled_dot_product_efficient_attention",
    ]
    assert out[4] == "torch.float64 (2, 8, 100, 64)"


def test_batch_norm_by_cudnn_or_not() -> None:
    out = simulate(
        """
        weight, mean = made(8, dtype=torch.float32), torch.zeros(8, device=DEVICE_TYPE)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            images = made(2, 8, 4, 4, dtype=dtype)
            print(*names(lambda: batch_norm(images, mean, mean, weight, weight, True)))
        flat = made(2, 8, dtype=torch.float32)
        print(*names(lambda: batch_norm(flat, mean, mean, weight, weight, True), gradient=False))
        """
    ).splitlines()
    for line in out[:2]:
        assert [name for name in line.split() if "batch_norm" in name] == [
            "cudnn_batch_norm",
            "cudnn_batch_norm_backward",
        ]
    assert "native_batch_norm_backward" in out[2]
    assert "native_batch_norm" in out[3]


def test_operators_that_cuda_has_stay_whole() -> None:
    out = simulate(
        """
        input, weight = made(4, 64), made(64)
        print(*names(lambda: F.silu(input)))
        input.grad = None
        print(*names(lambda: F.mish(input)))
        input.grad = None
        print(*names(lambda: F.rms_norm(input, (64,), weight)))
        """
    ).splitlines()
    assert out == [
        "silu empty_like silu_backward",
        "mish empty_like mish_backward",
        "_fused_rms_norm empty_like _fused_rms_norm_backward",
    ]


def test_convolution_keeps_channels_last() -> None:
    out = simulate(
        """
        images = made(2, 8, 16, 16).detach().to(memory_format=torch.channels_last)
        weight = made(4, 8, 3, 3)
        with Names():
            out = F.conv2d(images, weight, padding=1)
            grads = torch.ops.aten.convolution_backward(
                out, images, weight, [4], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3
            )
        print(out.stride(), *(grad.stride() for grad in grads))
        """
    )
    assert out.strip() == "(1024, 1, 64, 4) (2048, 1, 128, 8) (72, 1, 24, 8) (1,)"
