"""Single operators, forward and backward, whose allocations on a GPU are held against those of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["CASES", "ROUNDS", "run_cases"]

HALF, SINGLE, WIDE = torch.bfloat16, torch.float32, torch.float64
ROUNDS = ("warm", "cases")
"""The first makes what stays: workspaces of cuBLAS, handles, plans. The second is looked at."""

Make = Callable[..., Tensor]
Case = Callable[[Make], tuple[Callable[..., Any], Sequence[Tensor]]]
"""Given a maker of tensors: a function, and its arguments."""


class Operators(nn.Module):
    """Each case is a module, so that what is allocated is known by its name."""

    def __init__(self) -> None:
        super().__init__()
        for name in ROUNDS:
            setattr(self, name, nn.ModuleDict({case: Operator() for case in CASES}))

    def forward(self, place: str, case: str, call: Callable[[], Any]) -> Any:
        return getattr(self, place)[case](call)


class Operator(nn.Module):
    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


def run_cases(device: str) -> dict[str, str]:
    """Run all cases; returns why some could not be run."""
    model, refused = Operators(), {}
    for place in ROUNDS:
        for name, case in CASES.items():
            try:
                _run(model, place, name, case, partial(_make, device))
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"[:300]
            if device == "cuda":
                torch.cuda.synchronize()
    return refused


def _run(model: nn.Module, place: str, name: str, case: Case, make: Make) -> None:
    torch.manual_seed(0)
    function, arguments = case(make)
    result = model(place, name, lambda: function(*arguments))
    outputs = [each for each in _tensors(result) if each.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for each in result:
            yield from _tensors(each)


def _make(device: str, *shape: int, dtype: torch.dtype = SINGLE, below: int = 0) -> Tensor:
    """Random numbers that need a gradient; with `below`, whole numbers below it, which need none."""
    if below:
        return torch.randint(below, shape, device=device)
    tensor = torch.randn(shape, device=device, dtype=dtype)
    return tensor.requires_grad_() if dtype.is_floating_point else tensor


# -- cases -----------------------------------------------------------------------------------------


def _attention(
    make: Make,
    shape: tuple[int, int, int, int] = (4, 8, 512, 64),
    dtype: torch.dtype = HALF,
    *,
    key_heads: int = 0,
    keys: int = 0,
    mask: tuple[int, ...] = (),
    backend: SDPBackend | None = None,
    **options: Any,
) -> tuple[Callable[..., Any], Sequence[Tensor]]:
    batch, heads, length, head = shape

    def of(count: int, rows: int) -> Tensor:
        return make(batch, rows, count, head, dtype=dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        given = {**options, "attn_mask": chosen, "enable_gqa": bool(key_heads)}
        moved = (each.transpose(1, 2) for each in (query, key, value))
        if backend is None:
            return F.scaled_dot_product_attention(*moved, **given)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*moved, **given)

    chosen = make(*mask, below=2).bool() if mask else None
    keys = keys or length
    arguments = (of(heads, length), of(key_heads or heads, keys), of(key_heads or heads, keys))
    return attend, arguments


def _on(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = SINGLE) -> Case:
    """A function of tensors with these shapes; shapes that end with a negative number are indices."""

    def case(make: Make) -> tuple[Callable[..., Any], Sequence[Tensor]]:
        return function, [
            make(*shape[:-1], below=-shape[-1]) if shape[-1] < 0 else make(*shape, dtype=dtype)
            for shape in shapes
        ]

    return case


def _convolution(function: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Case:
    layout = options.pop("layout", torch.contiguous_format)
    dtype = options.pop("dtype", SINGLE)

    def convolve(input: Tensor, *more: Tensor) -> Any:
        return function(input.to(memory_format=layout), *more, **options)

    return _on(convolve, *shapes, dtype=dtype)


def _without_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*tensors: Tensor) -> Any:
        with torch.no_grad():
            return function(*tensors)

    return call


def _norm_of_gradients(*tensors: Tensor) -> Tensor:
    return nn.utils.get_total_norm(tensors)


LAST = torch.channels_last
CASES: dict[str, Case] = {
    # attention
    "sdpa-bf16": _attention,
    "sdpa-bf16-causal": partial(_attention, is_causal=True),
    "sdpa-bf16-head-128": partial(_attention, shape=(2, 8, 1024, 128), is_causal=True),
    "sdpa-bf16-head-80": partial(_attention, shape=(2, 8, 512, 80)),
    "sdpa-bf16-head-256": partial(_attention, shape=(2, 4, 512, 256)),
    "sdpa-bf16-mask": partial(_attention, mask=(4, 1, 512, 512)),
    "sdpa-bf16-groups": partial(_attention, key_heads=2, is_causal=True),
    "sdpa-bf16-dropout": partial(_attention, dropout_p=0.1),
    "sdpa-bf16-long": partial(_attention, shape=(1, 2, 4096, 64), is_causal=True),
    "sdpa-fp16": partial(_attention, dtype=torch.float16),
    "sdpa-fp32": partial(_attention, dtype=SINGLE),
    "sdpa-fp32-causal": partial(_attention, dtype=SINGLE, is_causal=True),
    "sdpa-fp32-few": partial(_attention, shape=(16, 8, 197, 64), dtype=SINGLE),
    "sdpa-fp32-mask": partial(_attention, dtype=SINGLE, mask=(4, 1, 512, 512)),
    "sdpa-fp32-dropout": partial(_attention, dtype=SINGLE, dropout_p=0.1),
    "sdpa-fp32-groups": partial(_attention, dtype=SINGLE, key_heads=2),
    "sdpa-fp32-head-128": partial(_attention, shape=(2, 8, 512, 128), dtype=SINGLE),
    "sdpa-flash": partial(_attention, backend=SDPBackend.FLASH_ATTENTION, is_causal=True),
    "sdpa-flash-groups": partial(_attention, backend=SDPBackend.FLASH_ATTENTION, key_heads=2),
    "sdpa-flash-dropout": partial(_attention, backend=SDPBackend.FLASH_ATTENTION, dropout_p=0.1),
    "sdpa-flash-split": partial(
        _attention, shape=(1, 2, 64, 64), keys=4096, backend=SDPBackend.FLASH_ATTENTION
    ),
    "sdpa-efficient": partial(_attention, backend=SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-efficient-mask": partial(
        _attention, backend=SDPBackend.EFFICIENT_ATTENTION, mask=(4, 1, 512, 512)
    ),
    "sdpa-cudnn": partial(_attention, backend=SDPBackend.CUDNN_ATTENTION, is_causal=True),
    "sdpa-cudnn-head-128": partial(
        _attention, shape=(2, 16, 1024, 128), backend=SDPBackend.CUDNN_ATTENTION
    ),
    "sdpa-math": partial(_attention, backend=SDPBackend.MATH),
    "sdpa-math-fp32": partial(_attention, dtype=SINGLE, backend=SDPBackend.MATH),
    # softmax and losses
    "softmax": _on(lambda x: x.softmax(-1), (64, 12, 197, 197)),
    "softmax-bf16-float": _on(lambda x: x.softmax(-1, dtype=SINGLE), (8, 8, 512, 512), dtype=HALF),
    "softmax-inner": _on(lambda x: x.softmax(1), (64, 197, 96)),
    "cross-entropy": _on(F.cross_entropy, (4096, 32000), (4096, -32000)),
    "cross-entropy-bf16": _on(F.cross_entropy, (4096, 32000), (4096, -32000), dtype=HALF),
    "cross-entropy-float": _on(
        lambda x, y: F.cross_entropy(x.float(), y), (4096, 32000), (4096, -32000), dtype=HALF
    ),
    "cross-entropy-smooth": _on(
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), (1024, 1000), (1024, -1000)
    ),
    "cross-entropy-2d": _on(F.cross_entropy, (8, 21, 64, 64), (8, 64, 64, -21)),
    "mse": _on(F.mse_loss, (4096, 1024), (4096, 1024)),
    "smooth-l1": _on(F.smooth_l1_loss, (4096, 1024), (4096, 1024)),
    "bce-with-logits": _on(
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.detach().sigmoid()),
        (4096, 128),
        (4096, 128),
    ),
    "kl-div": _on(
        lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"),
        (1024, 1000),
        (1024, 1000),
    ),
    # indices
    "embedding": _on(F.embedding, (8192, -32000), (32000, 512)),
    "embedding-bf16": _on(F.embedding, (16, 1024, -32000), (32000, 1024), dtype=HALF),
    "embedding-few": _on(F.embedding, (1024, -32000), (32000, 512)),
    "index-select": _on(lambda x, i: x.index_select(0, i), (4096, 512), (2048, -4096)),
    "index": _on(lambda x, i: x[i], (4096, 512), (2048, -4096)),
    "index-many": _on(lambda x, i: x[i], (50000, 64), (100000, -50000)),
    "gather": _on(lambda x, i: x.gather(1, i), (4096, 512), (4096, 16, -512)),
    "scatter-add": _on(lambda x, i, y: x.scatter_add(1, i, y), (64, 512), (64, 32, -512), (64, 32)),
    "index-add": _on(lambda x, i, y: x.index_add(0, i, y), (512, 64), (128, -512), (128, 64)),
    "masked-fill": _on(lambda x: x.masked_fill(x > 0, 0.0), (4096, 512)),
    "where": _on(lambda x, y: torch.where(x > 0, x, y), (4096, 512), (4096, 512)),
    "cumsum": _on(lambda x: x.cumsum(-1), (4096, 512)),
    "cumsum-flat": _on(lambda x: x.cumsum(0), (1_000_000,)),
    "cumsum-long": _on(lambda x: x.cumsum(-1), (64, 512, -2)),
    "sort": _on(lambda x: x.sort(-1).values, (64, 4096)),
    "sort-flat": _on(lambda x: x.sort().values, (1_000_000,)),
    "argsort-long": _on(lambda x: x.argsort(), (100_000, -1000)),
    "topk": _on(lambda x: x.topk(50).values, (64, 32000)),
    "argmax": _on(_without_gradient(lambda x: x.argmax(-1)), (4096, 32000)),
    "one-hot": _on(lambda i: F.one_hot(i, 1000), (4096, -1000)),
    "repeat-interleave": _on(lambda x: x.repeat_interleave(4, 1), (8, 8, 512, 64)),
    "roll": _on(lambda x: x.roll(7, 1), (64, 56, 56, 96)),
    "tril": _on(torch.tril, (8, 512, 512)),
    "pad": _on(lambda x: F.pad(x, (1, 1, 1, 1)), (32, 64, 56, 56)),
    "cat": _on(lambda x, y: torch.cat((x, y), 1), (64, 512, 64), (64, 512, 64)),
    "stack": _on(lambda x, y: torch.stack((x, y)), (64, 512, 64), (64, 512, 64)),
    "split": _on(lambda x: [each.contiguous() for each in x.chunk(3, -1)], (64, 197, 2304)),
    # normalization
    "layer-norm": _on(lambda x, w, b: F.layer_norm(x, (768,), w, b), (8192, 768), (768,), (768,)),
    "layer-norm-bf16": _on(
        lambda x, w, b: F.layer_norm(x, (1024,), w, b), (4, 512, 1024), (1024,), (1024,), dtype=HALF
    ),
    "layer-norm-rows": _on(
        lambda x, w, b: F.layer_norm(x, (96,), w, b), (32, 56, 56, 96), (96,), (96,)
    ),
    "layer-norm-rows-192": _on(
        lambda x, w, b: F.layer_norm(x, (192,), w, b), (128, 28, 28, 192), (192,), (192,)
    ),
    "layer-norm-plain": _on(lambda x: F.layer_norm(x, (768,)), (8192, 768)),
    "layer-norm-permuted": _on(
        lambda x, w, b: F.layer_norm(x.permute(0, 2, 3, 1), (96,), w, b),
        (32, 96, 28, 28),
        (96,),
        (96,),
    ),
    "rms-norm": _on(lambda x, w: F.rms_norm(x, (512,), w), (8192, 512), (512,)),
    "rms-norm-bf16": _on(lambda x, w: F.rms_norm(x, (512,), w), (8192, 512), (512,), dtype=HALF),
    "group-norm": _on(lambda x, w, b: F.group_norm(x, 32, w, b), (8, 256, 32, 32), (256,), (256,)),
    "batch-norm": _on(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (32, 64, 56, 56),
        (64,),
        (64,),
    ),
    "batch-norm-last": _on(
        lambda x, w, b: F.batch_norm(x.to(memory_format=LAST), None, None, w, b, training=True),
        (32, 64, 56, 56),
        (64,),
        (64,),
    ),
    "batch-norm-1d": _on(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        (4096, 512),
        (512,),
        (512,),
    ),
    "instance-norm": _on(F.instance_norm, (8, 64, 64, 64)),
    # products
    "linear": _on(F.linear, (4096, 768), (3072, 768), (3072,)),
    "linear-3d": _on(F.linear, (8, 512, 768), (3072, 768), (3072,)),
    "linear-bf16": _on(F.linear, (8, 512, 1024), (4096, 1024), dtype=HALF),
    "linear-bf16-bias": _on(F.linear, (8, 512, 1024), (4096, 1024), (4096,), dtype=HALF),
    "linear-head": _on(F.linear, (4096, 1024), (32000, 1024), dtype=HALF),
    "linear-fp64": _on(F.linear, (512, 256), (256, 256), dtype=WIDE),
    "matmul-transposed": _on(lambda x, y: x @ y.t(), (2048, 512), (1024, 512)),
    "matmul-strided": _on(lambda x, y: x[:, ::2] @ y, (2048, 1024), (512, 256)),
    "bmm": _on(torch.bmm, (64, 197, 64), (64, 64, 197)),
    "baddbmm": _on(
        lambda a, x, y: torch.baddbmm(a, x, y, beta=0.5),
        (64, 256, 256),
        (64, 256, 64),
        (64, 64, 256),
        dtype=HALF,
    ),
    "einsum": _on(lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), *[(8, 8, 256, 64)] * 2),
    # convolution
    "conv-3x3": _convolution(F.conv2d, (32, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "conv-3x3-bias": _convolution(F.conv2d, (32, 64, 56, 56), (64, 64, 3, 3), (64,), padding=1),
    "conv-3x3-bf16": _convolution(
        F.conv2d, (32, 64, 56, 56), (64, 64, 3, 3), padding=1, dtype=HALF
    ),
    "conv-3x3-last": _convolution(
        F.conv2d, (32, 64, 56, 56), (64, 64, 3, 3), padding=1, layout=LAST, dtype=HALF
    ),
    "conv-1x1": _convolution(F.conv2d, (32, 256, 28, 28), (512, 256, 1, 1)),
    "conv-7x7": _convolution(F.conv2d, (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "conv-stride": _convolution(F.conv2d, (32, 96, 56, 56), (192, 96, 2, 2), (192,), stride=2),
    "conv-depthwise": _convolution(
        F.conv2d, (32, 96, 56, 56), (96, 1, 7, 7), (96,), padding=3, groups=96
    ),
    "conv-depthwise-384": _convolution(
        F.conv2d, (32, 384, 14, 14), (384, 1, 7, 7), (384,), padding=3, groups=384
    ),
    "conv-depthwise-bf16": _convolution(
        F.conv2d, (32, 96, 56, 56), (96, 1, 7, 7), (96,), padding=3, groups=96, dtype=HALF
    ),
    "conv-patches": _convolution(F.conv2d, (64, 3, 224, 224), (768, 3, 16, 16), (768,), stride=16),
    "conv-patches-bf16": _convolution(
        F.conv2d, (64, 3, 224, 224), (768, 3, 16, 16), (768,), stride=16, dtype=HALF
    ),
    "conv-1d": _convolution(F.conv1d, (16, 256, 1024), (256, 256, 3), padding=1),
    "conv-3d": _convolution(F.conv3d, (2, 16, 16, 56, 56), (32, 16, 3, 3, 3), padding=1),
    "conv-transposed": _convolution(
        F.conv_transpose2d, (16, 128, 28, 28), (128, 64, 2, 2), stride=2
    ),
    # pointwise, pooling, copies
    "gelu": _on(F.gelu, (8192, 3072)),
    "silu-bf16": _on(F.silu, (8192, 1376), dtype=HALF),
    "glu": _on(F.glu, (8192, 1024)),
    "dropout": _on(lambda x: F.dropout(x, 0.1), (8192, 768)),
    "max-pool": _on(lambda x: F.max_pool2d(x, 3, 2, 1), (32, 64, 112, 112)),
    "average-pool": _on(lambda x: F.avg_pool2d(x, 2), (32, 64, 56, 56)),
    "adaptive-pool": _on(lambda x: F.adaptive_avg_pool2d(x, 7), (32, 64, 56, 56)),
    "bilinear": _on(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (8, 64, 28, 28)),
    "nearest": _on(lambda x: F.interpolate(x, scale_factor=2.0), (8, 64, 28, 28)),
    "to-bf16": _on(lambda x: x.bfloat16(), (4096, 1024)),
    "to-host": _on(_without_gradient(lambda x: x.cpu()), (4096, 1024)),
    "to-host-transposed": _on(_without_gradient(lambda x: x.t().cpu()), (4096, 1024)),
    "transposed": _on(lambda x: x.t().contiguous(), (4096, 1024)),
    "complex": _on(lambda x: torch.view_as_complex(x) * 1j, (1024, 1024, 2)),
    "fft": _on(lambda x: torch.fft.rfft(x).abs(), (64, 4096)),
    # reductions
    "sum": _on(torch.sum, (4096, 1024)),
    "sum-rows": _on(lambda x: x.sum(0), (8192, 1024)),
    "sum-bf16": _on(lambda x: x.sum(0), (8192, 1024), dtype=HALF),
    "sum-to-float": _on(lambda x: x.sum(0, dtype=SINGLE), (8192, 1024), dtype=HALF),
    "mean": _on(torch.mean, (4096, 1024)),
    "mean-rows": _on(lambda x: x.mean(-1), (8192, 1024)),
    "variance": _on(lambda x: x.var(0), (8192, 1024)),
    "norm": _on(torch.linalg.vector_norm, (4096, 1024)),
    "amax": _on(lambda x: x.amax(0), (8192, 1024)),
    "max-with-index": _on(lambda x: x.max(0).values, (8192, 1024)),
    "logsumexp": _on(lambda x: x.logsumexp(-1), (4096, 32000)),
    "norm-of-gradients": _on(_without_gradient(_norm_of_gradients), (4096, 1024), (1024,), (77, 5)),
    "all-finite": _on(_without_gradient(lambda x: x.isfinite().all()), (4096, 1024)),
    # linear algebra
    "svd": _on(_without_gradient(torch.linalg.svd), (512, 512)),
    "qr": _on(_without_gradient(torch.linalg.qr), (512, 256)),
    "eigh": _on(_without_gradient(lambda x: torch.linalg.eigh(x @ x.t())), (256, 256)),
    "cholesky": _on(
        _without_gradient(lambda x: torch.linalg.cholesky(x @ x.t() + 999 * torch.eye(256).to(x))),
        (256, 256),
    ),
    "inverse": _on(_without_gradient(torch.linalg.inv), (256, 256)),
    "solve": _on(_without_gradient(torch.linalg.solve), (256, 256), (256, 16)),
    # random numbers
    "multinomial": _on(
        _without_gradient(lambda x: torch.multinomial(x.abs() + 1, 8)),
        (64, 32000),
    ),
    "permutation": _on(
        _without_gradient(lambda x: torch.randperm(1_000_000, device=x.device)), (1,)
    ),
    "permutation-few": _on(
        _without_gradient(lambda x: torch.randperm(1000, device=x.device)), (1,)
    ),
    "bernoulli": _on(_without_gradient(lambda x: torch.bernoulli(x.sigmoid())), (4096, 1024)),
}
