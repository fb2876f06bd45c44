"""`scaled_dot_product_attention` as CUDA does it: the same kernel, and the same work around it.

After aten/src/ATen/native/transformers/attention.cpp (`scaled_dot_product_attention`,
`_scaled_dot_product_attention_math`). Each fused kernel is one operator of its own, so that autograd
saves what it saves for CUDA; what the kernels use inside is in `memlens.simulation.kernels.temporaries`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad

from memlens.simulation.kernels.choice import CUDNN_VERSION, choose_backend

__all__ = ["choose_backend", "scaled_dot_product_attention"]

_ATEN = torch.ops.aten
_FLASH_ALIGNMENT = 8
_EFFICIENT_ALIGNMENT = 8


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention` on a CUDA card."""
    if 0 in (query.numel(), key.numel(), value.numel()):
        out = query.new_zeros((*query.shape[:-1], value.size(-1)))
        return out + (query.sum() + key.sum() + value.sum()) * 0
    backend = choose_backend(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        enable_gqa,
        capability=torch.cuda.get_device_capability(),
        cudnn_version=torch.backends.cudnn.version() or CUDNN_VERSION,
    )
    if backend is SDPBackend.ERROR:
        raise RuntimeError("No available kernel. Aborting execution.")  # torch's words
    mask = _added(attn_mask, query.dtype)
    return _KERNELS[backend](query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bool mask as one that is added to the scores (`convert_boolean_attn_mask_`)."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    masked = torch.scalar_tensor(-math.inf, dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, masked)


def _needs_logsumexp(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    _enable_gqa: bool,
) -> Tensor:
    out: Tensor = _ATEN._scaled_dot_product_cudnn_attention(
        query,
        key,
        value,
        mask,
        _needs_logsumexp(query, key, value),
        dropout_p,
        is_causal,
        False,
        scale=scale,
    )[0]
    return out


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    _enable_gqa: bool,
) -> Tensor:
    head = query.size(-1)
    missing = -head % _FLASH_ALIGNMENT
    if missing:
        query, key, value = (pad(tensor, (0, missing)) for tensor in (query, key, value))
    out: Tensor = _ATEN._scaled_dot_product_flash_attention(
        query,
        key,
        value,
        dropout_p,
        is_causal,
        False,
        scale=1 / math.sqrt(head) if scale is None else scale,
    )[0]
    return out[..., :head] if missing else out


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    _enable_gqa: bool,
) -> Tensor:
    if mask is not None:
        if mask.stride(-1) != 1 or any(
            stride % _EFFICIENT_ALIGNMENT for stride in mask.stride()[:-1]
        ):
            keys = mask.size(-1)
            # A whole eight more where none is missing (`pad_bias`).
            mask = pad(mask, (0, _EFFICIENT_ALIGNMENT - keys % _EFFICIENT_ALIGNMENT))[..., :keys]
        mask = mask.expand(*query.shape[:3], key.size(2))
    out: Tensor = _ATEN._scaled_dot_product_efficient_attention(
        query,
        key,
        value,
        mask,
        _needs_logsumexp(query, key, value),
        dropout_p,
        is_causal,
        scale=scale,
    )[0]
    return out


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Written out: torch adds the mask in place, except to tensors of a subclass, as ours are."""
    dtype = query.dtype
    if (
        dtype in (torch.float16, torch.bfloat16)
        and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    ):
        query, key, value = query.float(), key.float(), value.float()
    factor = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    root = math.sqrt(abs(factor))
    scaled = query * math.copysign(root, factor)
    if is_causal:
        shape = (query.size(-2), key.size(-2))
        mask = _added(torch.ones(shape, dtype=torch.bool, device=query.device).tril(), scaled.dtype)
    if enable_gqa:
        if key.size(-3) != query.size(-3):
            key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        if value.size(-3) != query.size(-3):
            value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scores = torch.matmul(scaled, key.transpose(-2, -1) * root)
    if mask is not None:
        scores.add_(mask)
    scores = _ATEN._safe_softmax(scores, -1)
    if dropout_p > 0.0:
        scores = torch.dropout(scores, dropout_p, True)
    # What is given back beside the result, and dropped by those who called.
    _weights = scores.to(dtype)
    return torch.matmul(scores, value).to(dtype)


_KERNELS: dict[SDPBackend, Callable[..., Tensor]] = {
    SDPBackend.CUDNN_ATTENTION: _cudnn,
    SDPBackend.FLASH_ATTENTION: _flash,
    SDPBackend.EFFICIENT_ATTENTION: _efficient,
    SDPBackend.MATH: _math,
}
