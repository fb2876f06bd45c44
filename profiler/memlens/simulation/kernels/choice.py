"""Which kernel CUDA takes for attention: the rules of torch's own choice, on shapes and switches.

After aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (`select_sdp_backend` and its checks) and
aten/src/ATen/native/transformers/sdp_utils_cpp.h (shared checks), as in torch 2.13. Nested tensors and
ROCm are left out.
"""

from __future__ import annotations

from math import floor

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

__all__ = ["CUDNN_VERSION", "choose_backend"]

CUDNN_VERSION = 91900
"""cuDNN of the job, where torch here has none: from 9.15.1 on it comes first on Hopper and Blackwell
(`check_prefer_cudnn_attention`), and torch's wheels for CUDA 13 have a later one."""

_DEFAULT_ORDER = [1, 2, 0, 3, 4]
"""`sdp_priority_order` in aten/src/ATen/Context.h, before CUDA has chosen its own."""
_HALVES = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
_LARGEST_CUDNN_HEAD = 128


def choose_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
    *,
    capability: tuple[int, int],
    cudnn_version: int = CUDNN_VERSION,
) -> SDPBackend:
    """The kernel that CUDA would take; `SDPBackend.ERROR` where all that can are switched off.

    Args:
        query: batch, heads, sequence, size of a head; so are key and value.
        key: as query, perhaps with fewer heads.
        value: as key.
        attn_mask: bool, or added to the scores.
        dropout_p: dropped share of the scores.
        is_causal: whether later keys are masked.
        enable_gqa: whether several heads of queries share one of keys.
        capability: compute capability of the card.
        cudnn_version: as `torch.backends.cudnn.version()` has it.
    """
    job = _Job(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, capability)
    for number in _order(capability, cudnn_version):
        backend = _BACKENDS.get(number)
        if backend is SDPBackend.CUDNN_ATTENTION and job.suits_cudnn(cudnn_version):
            return backend
        if backend is SDPBackend.FLASH_ATTENTION and job.suits_flash():
            return backend
        if backend is SDPBackend.EFFICIENT_ATTENTION and job.suits_efficient():
            return backend
        if backend is SDPBackend.MATH and torch.backends.cuda.math_sdp_enabled():
            return backend
    return SDPBackend.ERROR


_BACKENDS = {
    0: SDPBackend.MATH,
    1: SDPBackend.FLASH_ATTENTION,
    2: SDPBackend.EFFICIENT_ATTENTION,
    3: SDPBackend.CUDNN_ATTENTION,
}


def _order(capability: tuple[int, int], cudnn_version: int) -> list[int]:
    order = list(torch._C._get_sdp_priority_order())
    if order == _DEFAULT_ORDER and cudnn_version > 91500 and capability[0] in (9, 10):
        return [3, 1, 2, 0]
    return order


class _Job:
    """One call, and the questions that torch asks about it."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        enable_gqa: bool,
        capability: tuple[int, int],
    ) -> None:
        self.tensors = (query, key, value)
        self.query, self.key, self.value, self.mask = query, key, value, mask
        self.dropout_p, self.is_causal, self.enable_gqa = dropout_p, is_causal, enable_gqa
        self.capability = capability
        self.needs_gradient = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in self.tensors
        )
        self.heads = tuple(tensor.size(-1) for tensor in self.tensors)

    # -- the kernels ---------------------------------------------------------------------------

    def suits_cudnn(self, version: int) -> bool:
        """As `can_use_cudnn_attention`."""
        if not torch.backends.cuda.cudnn_sdp_enabled() or not self._are_4d():
            return False
        if self.dropout_p > 0.0 and 91100 < version < 91400:
            return False
        if (
            torch.are_deterministic_algorithms_enabled()
            and not torch.is_deterministic_algorithms_warn_only_enabled()
        ):
            return False
        return (
            self._are(_HALVES if self.capability >= (8, 0) else (torch.float16,))
            and self._mask_suits_cudnn()
            and self._is_newer_than_volta()
            and self.dropout_p * 16 == floor(self.dropout_p * 16)
            and self._has_no_empty_sequence()
            and self._ends_dense(or_single=True)
            and self._heads_fit(grouped=True, values_as_keys=False)
            and self._sizes_suit_cudnn(version)
        )

    def suits_flash(self) -> bool:
        """As `can_use_flash_attention`."""
        return (
            torch.backends.cuda.flash_sdp_enabled()
            and self._are_4d()
            and self.mask is None
            and len(set(self.heads)) == 1
            and self.heads[0] <= _LARGEST_HEAD
            and self._is_newer_than_volta()
            and self._backward_fits_shared_memory()
            and (not self.is_causal or self.query.size(-2) == self.key.size(-2))
            and self._are(_HALVES)
            and self._heads_fit(grouped=True)
            and self._has_no_empty_sequence()
            and self._ends_dense(or_single=True)
        )

    def suits_efficient(self) -> bool:
        """As `can_use_mem_efficient_attention`."""
        if not torch.backends.cuda.mem_efficient_sdp_enabled() or not self._are_4d():
            return False
        alignment = self._gemm_alignment()
        return (
            self.capability >= (5, 0)
            and self.heads[0] == self.heads[1]
            and self.heads[0] > 0
            and self.heads[2] > 0
            and self.heads[0] % alignment == 0
            and self.heads[2] % alignment == 0
            and self._has_no_empty_sequence()
            and self._ends_dense(or_single=False)
            and self._heads_fit(grouped=False)
            and self._are(
                (torch.float32, *_HALVES)
                if self.capability >= (8, 0)
                else (torch.float32, torch.float16)
            )
        )

    # -- the checks ----------------------------------------------------------------------------

    def _are_4d(self) -> bool:
        return all(tensor.dim() == 4 for tensor in self.tensors)

    def _are(self, dtypes: tuple[torch.dtype, ...]) -> bool:
        dtype = self.query.dtype
        return dtype in dtypes and self.key.dtype is dtype and self.value.dtype is dtype

    def _is_newer_than_volta(self) -> bool:
        return (8, 0) <= self.capability <= (12, 1)

    def _has_no_empty_sequence(self) -> bool:
        return self.query.size(-2) > 0 and self.key.size(-2) > 0

    def _ends_dense(self, *, or_single: bool) -> bool:
        if or_single and self.heads[0] == 1:
            dense = True
        else:
            dense = all(tensor.stride(-1) == 1 for tensor in self.tensors)
        mask = self.mask
        return dense and (mask is None or mask.stride(-1) == 1 or mask.size(-1) == 1)

    def _heads_fit(self, *, grouped: bool, values_as_keys: bool = True) -> bool:
        if len({tensor.size(0) for tensor in self.tensors}) != 1:
            return False
        of_query, of_key, of_value = (tensor.size(-3) for tensor in self.tensors)
        if not (self.enable_gqa and grouped):
            return of_query == of_key == of_value
        if values_as_keys and of_key != of_value:
            return False
        return of_query % of_key == 0 and of_query % of_value == 0

    def _backward_fits_shared_memory(self) -> bool:
        """As `check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`."""
        capability, head = self.capability, self.heads[0]
        small = (8, 6) <= capability <= (8, 9) or (12, 0) <= capability <= (12, 1)
        if not (small and self.needs_gradient):
            return True
        return head <= 192 or (self.dropout_p == 0.0 and head > 224)

    def _gemm_alignment(self) -> int:
        """As `minimum_gemm_alignment`, in elements."""
        is_half = self.query.dtype in _HALVES
        alignment = 4 if self.capability >= (8, 0) else 1
        if self.capability >= (8, 0) or (self.capability >= (7, 0) and is_half):
            alignment = max(alignment, 8 if is_half else 4)
        return alignment

    def _mask_suits_cudnn(self) -> bool:
        """As `check_attn_mask_shape`."""
        mask = self.mask
        if mask is None:
            return True
        if mask.requires_grad or mask.dim() not in (2, 4):
            return False
        sizes = (*self.query.shape[:3], self.key.size(2))[-mask.dim() :]
        return all(have in (want, 1) for have, want in zip(mask.shape, sizes, strict=True))

    def _sizes_suit_cudnn(self, version: int) -> bool:
        """As `check_cudnn_tensor_shapes`, for cuDNN 9."""
        of_query, _, of_value = self.heads
        largest = _LARGEST_CUDNN_HEAD
        if (
            (self.capability == (9, 0) or self.capability[0] == 10)
            and version >= 91100
            and (of_query, of_value) == (192, 128)
        ):
            largest = 192
        return (
            max(self.query.shape[:2]) <= 65535
            and of_query <= largest
            and of_value <= largest
            and of_query % 8 == 0
            and of_value % 8 == 0
            and self.key.size(2) != 1
            and (self.dropout_p == 0.0 or self.query.size(2) != 1)
        )
