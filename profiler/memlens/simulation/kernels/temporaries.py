"""What the CUDA kernel of an operator takes from the allocator and gives back before it returns.

One row per operator, each from torch's public source, and held against what a GPU does
(tools/gpu/operators.py). What stands in no public source is in `LIMITS`: the workspaces of cuDNN and
cuSOLVER.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memlens.simulation.kernels import (
    attention_buffers,
    convolutions,
    index_buffers,
    norm_buffers,
)
from memlens.simulation.kernels.products import copied_for_cublas
from memlens.simulation.kernels.reductions import reduction_bytes

__all__ = ["LIMITS", "TABLE", "Row", "is_reduced", "temporaries"]

Sizes = Callable[[Sequence[Any], Mapping[str, Any], Any], tuple[int, ...]]
"""From arguments, keyword arguments and results of an operator to bytes, in order."""


class Row(NamedTuple):
    """One operator."""

    sizes: Sizes
    source: str
    """Where torch says so, below aten/src/ATen/native."""


def temporaries(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any
) -> tuple[int, ...]:
    """Bytes of each temporary of one call, alive together up to `GIVEN_BACK`; `()` for most operators.

    Args:
        func: the operator.
        args: as the dispatcher has them.
        kwargs: likewise.
        outputs: what it returned.
    """
    sizes = _ROWS[func]
    if sizes is None:
        return ()
    first = args[0] if args else None
    if isinstance(first, (list, tuple)):
        first = first[0] if first else None
    if not isinstance(first, Tensor) or first.device.type == "cpu":
        return _from_host(func, args, kwargs) if isinstance(first, Tensor) else ()
    return sizes(args, kwargs, outputs)


class _Rows(dict[Any, "Sizes | None"]):
    """Rows by operator overload, looked up by name once, so that a call costs one look-up."""

    def __missing__(self, func: Any) -> Sizes | None:
        row = TABLE.get(func._schema.name.partition("::")[2])
        found = self[func] = None if row is None else row.sizes
        return found


# -- single operators --------------------------------------------------------------------------


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copied(*places: int) -> Sizes:
    """Arguments that the kernel makes contiguous."""

    def sizes(args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
        return tuple(
            _bytes(args[place])
            for place in places
            if isinstance(args[place], Tensor) and not args[place].is_contiguous()
        )

    return sizes


def _softmax_backward(
    args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any
) -> tuple[int, ...]:
    """The gradient times the output; of `log_softmax` there is none."""
    gradient, output = args[:2]
    return (output.numel() * torch.promote_types(gradient.dtype, output.dtype).itemsize,)


def _loss(*, unreduced: bool) -> Sizes:
    """A loss that is reduced after it was made for each element, into a result or a tensor of its own."""

    def sizes(args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
        if not is_reduced(args, kwargs, 2 if unreduced else 3):
            return ()
        loss = args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape))
        sums = reduction_bytes(loss, None, _wide(loss.dtype))
        return (_bytes(loss) if unreduced else loss.element_size(), *sums)

    return sizes


def is_reduced(args: Sequence[Any], kwargs: Mapping[str, Any], place: int) -> bool:
    """Whether a loss is one number: the mean (1, as is usual) or the sum (2)."""
    return bool(args[place] if len(args) > place else kwargs.get("reduction", 1))


def _sort(args: Sequence[Any], kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """Of one row: the places to be sorted along, and what CUB uses."""
    values = args[0]
    if values.numel() != max(values.shape, default=0):
        return ()
    return index_buffers.sort_bytes(values.numel(), values.element_size())


def _reduces(
    accumulator: Callable[[torch.dtype], int],
    *,
    vector: int = 4,
    dims: int = 1,
    casts: bool = False,
) -> Sizes:
    """A reduction of the first argument over the dimensions in another.

    Args:
        accumulator: bytes that a thread accumulates in, by type of what is reduced.
        vector: elements that it loads at once.
        dims: position of the dimensions.
        casts: what is reduced is first cast to the type of the result (`make_reduction`).
    """

    def sizes(args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
        tensor = args[0]
        over = args[dims] if len(args) > dims else kwargs.get("dim")
        if isinstance(over, Tensor):
            return ()  # the larger of two
        if isinstance(over, bool):
            over = None
        elif isinstance(over, int):
            over = (over,)
        dtype = tensor.dtype
        cast: tuple[int, ...] = ()
        if casts and dtype is not outputs.dtype and not _mixed(tensor, outputs):
            dtype = outputs.dtype
            cast = (tensor.numel() * dtype.itemsize,)
        return cast + reduction_bytes(tensor, over, accumulator(dtype), vector)

    return sizes


def _mixed(tensor: Tensor, result: Tensor) -> bool:
    return result.dtype is torch.float32 and tensor.dtype in (torch.float16, torch.bfloat16)


def _wide(dtype: torch.dtype) -> int:
    """`at::opmath_type`: halves are summed in float32."""
    return max(dtype.itemsize, 4) if dtype.is_floating_point else dtype.itemsize


def _plain(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _with_index(dtype: torch.dtype) -> int:
    """A value and its index."""
    return 16


def _welford(dtype: torch.dtype) -> int:
    """`WelfordData`: mean, sum of squares, and the count twice."""
    return 32 if dtype is torch.float64 else 16


def _flag(dtype: torch.dtype) -> int:
    return 1


_CHUNK = 65536
"""`kChunkSize` of MultiTensorApply.cuh."""


def _foreach_norm(args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
    """A partial result for each chunk of the longest tensor, for every tensor."""
    tensors, results = args[0], outputs
    chunks = max(-(-tensor.numel() // _CHUNK) for tensor in tensors)
    size = len(tensors) * chunks * _wide(results[0].dtype)
    return (size,) if size else ()


def _foreach_max(args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
    tensors = args[0]
    chunks = max(-(-tensor.numel() // _CHUNK) for tensor in tensors)
    size = len(tensors) * chunks * tensors[0].element_size()
    return (size,) if size else ()


def _multinomial(args: Sequence[Any], kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    replacement = args[2] if len(args) > 2 else kwargs.get("replacement", False)
    return () if replacement and args[1] != 1 else (_bytes(args[0]),)


def _svd(args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """A copy that is destroyed, and a state per matrix."""
    matrix = args[0]
    if not matrix.numel():
        return ()
    return _bytes(matrix), 4 * (matrix.numel() // (matrix.size(-1) * matrix.size(-2)))


def _qr(args: Sequence[Any], kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """Reflectors' factors; a copy of the matrix where no result has room for it."""
    matrix = args[0]
    rows, columns = matrix.shape[-2:]
    if not matrix.numel():
        return ()
    tau = _bytes(matrix) // max(rows, columns)
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "reduced")
    return (tau, _bytes(matrix)) if mode == "r" and rows > columns else (tau,)


def _eigh(args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    matrix = args[0]
    if not matrix.numel():
        return ()
    state = 4 * (matrix.numel() // (matrix.size(-1) * matrix.size(-2)))
    compute_vectors = args[2] if len(args) > 2 else True
    return (state,) if compute_vectors else (_bytes(matrix), state)


def _copy(args: Sequence[Any], kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """Between host and device, where layouts or types differ (`copy_requires_temporaries`)."""
    target, source = args[:2]
    from_host, to_host = source.device.type == "cpu", target.device.type == "cpu"
    if from_host == to_host:
        return ()
    same = target.dtype is source.dtype
    if same and target.is_contiguous() and source.is_contiguous():
        return ()
    non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
    if from_host:
        if non_blocking and not (same and target.is_contiguous()):
            return (target.numel() * source.element_size(),)
        return () if target.is_contiguous() else (_bytes(target),)
    if non_blocking and not same:
        return (source.numel() * target.element_size(),)
    return () if source.is_contiguous() else (_bytes(source),)


def _from_host(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[int, ...]:
    """A host tensor is the target: only a copy from the device uses the device's memory."""
    if func._schema.name != "aten::copy_" or args[1].device.type == "cpu":
        return ()
    return _copy(args, kwargs, None)


TABLE: Mapping[str, Row] = {
    # attention
    "_scaled_dot_product_flash_attention": Row(
        attention_buffers.flash_forward, "transformers/cuda/flash_attn/flash_api.cpp"
    ),
    "_scaled_dot_product_flash_attention_backward": Row(
        attention_buffers.flash_backward, "transformers/cuda/flash_attn/flash_api.cpp"
    ),
    "_scaled_dot_product_efficient_attention": Row(
        attention_buffers.efficient_forward, "transformers/cuda/attention.cu"
    ),
    "_scaled_dot_product_efficient_attention_backward": Row(
        attention_buffers.efficient_backward, "transformers/cuda/attention_backward.cu"
    ),
    "_scaled_dot_product_cudnn_attention": Row(attention_buffers.cudnn_forward, "cudnn/MHA.cpp"),
    "_scaled_dot_product_cudnn_attention_backward": Row(
        attention_buffers.cudnn_backward, "cudnn/MHA.cpp"
    ),
    # softmax and losses
    "_softmax": Row(_copied(0), "cuda/SoftMax.cu"),
    "_log_softmax": Row(_copied(0), "cuda/SoftMax.cu"),
    "_softmax_backward_data": Row(_softmax_backward, "cuda/SoftMax.cu"),
    "_log_softmax_backward_data": Row(_copied(0, 1), "cuda/SoftMax.cu"),
    "nll_loss_forward": Row(_copied(0, 1), "cuda/Loss.cu"),
    "nll_loss_backward": Row(_copied(0, 1, 2), "cuda/Loss.cu"),
    "mse_loss": Row(_loss(unreduced=True), "BinaryOps.cpp (`mse_loss_out`)"),
    "smooth_l1_loss": Row(_loss(unreduced=True), "BinaryOps.cpp (`smooth_l1_loss_out`)"),
    "binary_cross_entropy": Row(_loss(unreduced=False), "cuda/Loss.cu"),
    # indices
    "sort": Row(_sort, "cuda/Sort.cpp, cuda/SortStable.cu"),
    "embedding_dense_backward": Row(
        index_buffers.embedding_backward, "cuda/Embedding.cu, cuda/EmbeddingBackwardKernel.cu"
    ),
    "index_put": Row(index_buffers.index_put, "cuda/Indexing.cu"),
    "index_put_": Row(index_buffers.index_put, "cuda/Indexing.cu"),
    "_index_put_impl_": Row(index_buffers.index_put, "cuda/Indexing.cu"),
    "_unsafe_index_put": Row(index_buffers.index_put, "cuda/Indexing.cu"),
    "masked_scatter": Row(index_buffers.masked_scatter, "cuda/IndexKernel.cpp"),
    "masked_scatter_": Row(index_buffers.masked_scatter, "cuda/IndexKernel.cpp"),
    # normalization
    "native_layer_norm": Row(norm_buffers.layer_norm_forward, "cuda/layer_norm_kernel.cu"),
    "native_layer_norm_backward": Row(
        norm_buffers.layer_norm_backward, "cuda/layer_norm_kernel.cu"
    ),
    "_fused_rms_norm": Row(norm_buffers.layer_norm_forward, "cuda/layer_norm_kernel.cu"),
    "_fused_rms_norm_backward": Row(norm_buffers.rms_norm_backward, "cuda/layer_norm_kernel.cu"),
    "native_group_norm": Row(norm_buffers.group_norm_forward, "cuda/group_norm_kernel.cu"),
    "native_group_norm_backward": Row(
        norm_buffers.group_norm_backward, "cuda/group_norm_kernel.cu"
    ),
    "native_batch_norm": Row(norm_buffers.batch_norm_forward, "cuda/Normalization.cuh"),
    "native_batch_norm_backward": Row(norm_buffers.batch_norm_backward, "cuda/Normalization.cuh"),
    "cudnn_batch_norm_backward": Row(norm_buffers.cudnn_batch_norm_backward, "cudnn/BatchNorm.cpp"),
    # products of matrices
    "mm": Row(copied_for_cublas(0, 1), "cuda/Blas.cpp"),
    "addmm": Row(copied_for_cublas(1, 2), "cuda/Blas.cpp"),
    "_addmm_activation": Row(copied_for_cublas(1, 2), "cuda/Blas.cpp"),
    "bmm": Row(copied_for_cublas(0, 1), "cuda/Blas.cpp"),
    "baddbmm": Row(copied_for_cublas(1, 2), "cuda/Blas.cpp"),
    # convolution
    "convolution": Row(convolutions.forward, "cudnn/ConvShared.cpp, Convolution.cpp"),
    "convolution_backward": Row(convolutions.backward, "cudnn/ConvShared.cpp, Convolution.cpp"),
    # reductions
    "sum": Row(_reduces(_wide, casts=True), "cuda/Reduce.cuh, cuda/ReduceSumProdKernel.cu"),
    "nansum": Row(_reduces(_wide, casts=True), "cuda/Reduce.cuh, cuda/ReduceSumProdKernel.cu"),
    "mean": Row(_reduces(_wide, casts=True), "cuda/Reduce.cuh, cuda/ReduceMomentKernel.cu"),
    "linalg_vector_norm": Row(_reduces(_wide, dims=2), "cuda/Reduce.cuh, cuda/ReduceNormKernel.cu"),
    "var": Row(_reduces(_welford, vector=2), "cuda/Reduce.cuh, cuda/ReduceMomentKernel.cu"),
    "std": Row(_reduces(_welford, vector=2), "cuda/Reduce.cuh, cuda/ReduceMomentKernel.cu"),
    "var_mean": Row(_reduces(_welford, vector=2), "cuda/Reduce.cuh, cuda/ReduceMomentKernel.cu"),
    "std_mean": Row(_reduces(_welford, vector=2), "cuda/Reduce.cuh, cuda/ReduceMomentKernel.cu"),
    "amax": Row(_reduces(_plain), "cuda/Reduce.cuh, cuda/ReduceMaxValuesKernel.cu"),
    "amin": Row(_reduces(_plain), "cuda/Reduce.cuh, cuda/ReduceMinValuesKernel.cu"),
    "max": Row(_reduces(_with_index), "cuda/Reduce.cuh, cuda/ReduceMaxValuesKernel.cu"),
    "min": Row(_reduces(_with_index), "cuda/Reduce.cuh, cuda/ReduceMinValuesKernel.cu"),
    "argmax": Row(_reduces(_with_index), "cuda/Reduce.cuh, cuda/ReduceArgMaxKernel.cu"),
    "argmin": Row(_reduces(_with_index), "cuda/Reduce.cuh, cuda/ReduceArgMinKernel.cu"),
    "any": Row(_reduces(_flag), "cuda/Reduce.cuh, cuda/ReduceLogicKernel.cu"),
    "all": Row(_reduces(_flag), "cuda/Reduce.cuh, cuda/ReduceLogicKernel.cu"),
    "_foreach_norm": Row(_foreach_norm, "cuda/ForeachReduceOp.cu"),
    "_foreach_max": Row(_foreach_max, "cuda/ForeachReduceOp.cu"),
    # linear algebra
    "_linalg_svd": Row(_svd, "BatchLinearAlgebra.cpp, cuda/linalg/BatchLinearAlgebraLib.cpp"),
    "linalg_qr": Row(_qr, "BatchLinearAlgebra.cpp"),
    "_linalg_eigh": Row(_eigh, "BatchLinearAlgebra.cpp"),
    # other
    "multinomial": Row(_multinomial, "Distributions.cpp"),
    "copy_": Row(_copy, "cuda/Copy.cu"),
}

_ROWS = _Rows()

LIMITS: Mapping[str, str] = {
    "convolution": convolutions.LIMIT,
    "convolution_backward": convolutions.LIMIT,
    "cudnn_batch_norm": "cuDNN's workspaces of batch normalization are not counted",
    "_scaled_dot_product_cudnn_attention": (
        "of cuDNN's workspaces of attention only the public part is counted"
    ),
    "_thnn_fused_lstm_cell": "an LSTM is simulated cell by cell, where CUDA has one kernel of cuDNN",
    "_thnn_fused_gru_cell": "a GRU is simulated cell by cell, where CUDA has one kernel of cuDNN",
    "_linalg_svd": "cuSOLVER's workspaces are not counted",
    "linalg_qr": "cuSOLVER's workspaces are not counted",
    "_linalg_eigh": "cuSOLVER's workspaces are not counted",
    "sort": "of the buffers of sorting only those of a single row are counted",
    "topk": "the buffers of sorting and searching are not counted",
    "argsort": "of the buffers of sorting only those of a single row are counted",
    "_unique2": "the buffers of sorting and searching are not counted",
}
"""What is not known of an operator, by its name; a sentence for who reads the result."""
