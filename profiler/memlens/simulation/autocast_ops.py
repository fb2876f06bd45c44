"""The operators that CUDA's autocast treats, by what it does to their arguments.

After aten/src/ATen/autocast_mode.h (the `AT_FORALL_...` lists) and autocast_mode.cpp of torch 2.13. An
operator that the running torch does not treat is left alone (`memlens.simulation.autocast`), so names of
several versions can stand here together.
"""

from __future__ import annotations

__all__ = [
    "BANNED",
    "FLOAT32",
    "FLOAT32_APPENDED",
    "FLOAT32_RESULT",
    "LEFT_OUT",
    "LOWER_PRECISION",
    "WIDEST",
]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER_PRECISION = _names(
    """
    _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution
    cudnn_convolution_transpose prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm
    baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell
    gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
    scaled_dot_product_attention
    """
)
"""Run on arguments in the region's dtype (`lower_precision_fp`)."""

FLOAT32 = _names(
    """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
    frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
    upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
    upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
    """
)
"""Run on arguments in float32 (`fp32`)."""

FLOAT32_RESULT = _names(
    """
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
    linalg_matrix_norm.str_ord sum sum.dim_IntList
    """
)
"""Asked for a float32 result, if the caller asks for none (`fp32_set_opt_dtype`)."""

FLOAT32_APPENDED = {
    "norm.Scalar": "norm.ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
}
"""The same by another overload, since theirs takes no dtype (`fp32_append_dtype`)."""

WIDEST = _names(
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
)
"""Run on arguments in the widest dtype among them (`promote`)."""

BANNED = frozenset({"binary_cross_entropy"})
"""Refused, since its gradient may overflow in float16."""

LEFT_OUT = frozenset({"_cudnn_rnn"})
"""Of builds with cuDNN, which is not asked for recurrent layers in a simulation."""
