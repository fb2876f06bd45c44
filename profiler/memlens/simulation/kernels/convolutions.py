"""What cuDNN's convolutions use inside: copies in the layout that they need, and workspaces.

CuDNN chooses a kernel as it runs, by rules that are not public. What stands here is what was measured on
an H200 (tools/gpu_operators.md): for tensor cores, channels are last. Where they are not, cuDNN lays
input, weight and result out anew within its workspace; channels are padded to 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memlens.simulation.kernels.card import capability, multiprocessors
from memlens.simulation.kernels.reductions import reduction_bytes
from memlens.simulation.memory import GIVEN_BACK

__all__ = ["LIMIT", "backward", "cudnn_layout", "forward"]

LIMIT = (
    "cuDNN's workspaces of convolutions are an estimate, after what an H200 took; "
    "with cudnn.benchmark they may be several times as large"
)
_VECTOR_BYTES = 16
_TILE = 128
"""Rows and columns of a product that one multiprocessor works on: about what the figures suggest."""
_SPREAD_BYTES = 10_000_000
"""Beside the spread tensors: 9.9 MB of 96 channels, 10.2 MB of 192."""
_FEW_PIXELS = 14 * 14
_SMALL_BYTES = 16 * 2**20
"""Of input and result of a depthwise convolution; larger ones were measured."""
_FEW_OPERATIONS = 1_500_000_000
"""0.9e9 and fewer took no such workspace, 2.8e9 and more did. The published peaks of vision models that
are trained one image at a time say the same (examples/published)."""


def cudnn_layout(*tensors: Tensor) -> Any:
    """The layout in which cuDNN convolves (`cudnn_conv_suggest_memory_format`)."""
    for tensor in tensors:
        if tensor.dim() == 4 and not tensor.is_contiguous():
            if tensor.is_contiguous(memory_format=torch.channels_last):
                return torch.channels_last
        elif (
            tensor.dim() == 5
            and not tensor.is_contiguous()
            and tensor.is_contiguous(memory_format=torch.channels_last_3d)
        ):
            return torch.channels_last_3d
    return torch.contiguous_format


def forward(args: Sequence[Any], _kwargs: Mapping[str, Any], outputs: Any) -> tuple[int, ...]:
    """Input and weight in another layout, and the workspace."""
    input, weight = args[:2]
    layout = cudnn_layout(input, weight)
    copies = _in_layout(layout, input, weight)
    transposed, groups = args[6], args[8]
    if not _is_laid_out_anew(input, weight, outputs, layout, transposed, groups):
        return copies
    read = [input, weight, outputs]
    if input.dtype is torch.float32 and weight.shape[2:] == (3, 3) and not transposed:
        read.pop()  # these kernels write the result as it is to lie
    return (*copies, sum(map(_padded, read)))


def backward(args: Sequence[Any], _kwargs: Mapping[str, Any], _outputs: Any) -> tuple[int, ...]:
    """The same; the workspaces of both gradients follow each other."""
    gradient, input, weight = args[:3]
    of_input, of_weight, of_bias = args[10]
    layout = cudnn_layout(input, weight)
    read = [gradient] + [input] * bool(of_weight) + [weight] * bool(of_input)
    sizes = list(_in_layout(layout, *read))
    transposed, groups = args[7], args[9]
    if _is_laid_out_anew(input, weight, gradient, layout, transposed, groups):
        workspace = sum(map(_padded, (input, weight, gradient)))
        sizes += [workspace, GIVEN_BACK] * of_input
        sizes += [workspace + _partial_gradients(weight)] * of_weight
    if of_weight and _is_spread(input, gradient, layout, groups):
        spread = _VECTOR_BYTES // input.element_size() * (input.nbytes + gradient.nbytes)
        sizes.append(spread + _SPREAD_BYTES)
    if of_bias:
        dims = [dim for dim in range(gradient.dim()) if dim != 1]
        sizes += reduction_bytes(gradient, dims, max(4, gradient.element_size()))
    return tuple(sizes)


def _in_layout(layout: Any, *tensors: Tensor) -> tuple[int, ...]:
    return tuple(
        tensor.numel() * tensor.element_size()
        for tensor in tensors
        if not tensor.is_contiguous(memory_format=layout)
    )


def _is_laid_out_anew(
    input: Tensor, weight: Tensor, result: Tensor, layout: Any, transposed: bool, groups: int
) -> bool:
    if layout is not torch.contiguous_format or groups != 1:
        return False
    if not transposed and 2 * result.numel() * weight[0].numel() < _FEW_OPERATIONS:
        return False
    if not _on_tensor_cores(input.dtype):
        return False
    return any(size != 1 for size in weight.shape[2:])  # else it is a product of matrices


def _on_tensor_cores(dtype: torch.dtype) -> bool:
    if not torch.backends.cudnn.enabled or capability() < (8, 0):
        return False
    if dtype is torch.float32:
        # `allow_tf32` speaks of recurrent networks as well, and raises where the two differ.
        conv: Any = getattr(torch.backends.cudnn, "conv", None)
        return conv is None or conv.fp32_precision == "tf32"
    return dtype in (torch.float16, torch.bfloat16)


def _is_spread(input: Tensor, result: Tensor, layout: Any, groups: int) -> bool:
    """Whether each channel of a depthwise convolution is padded to 16 bytes, as seen in ConvNeXt.

    There images of 14 x 14 pixels and less were not, nor were those in bfloat16.
    """
    return (
        layout is torch.channels_last
        and groups == input.size(1) > 1
        and input.dtype is torch.float32
        and _on_tensor_cores(input.dtype)
        and input.shape[2:].numel() > _FEW_PIXELS
        and input.nbytes + result.nbytes >= _SMALL_BYTES
    )


def _partial_gradients(weight: Tensor) -> int:
    """Of the weight, in float32: a product with too few tiles for the card is split along its sum.

    Halves are summed in float32 in any case.
    """
    count = _padded(weight) // weight.element_size()
    rows, columns = weight.size(0), count // weight.size(0)
    splits = multiprocessors() // (-(-rows // _TILE) * -(-columns // _TILE))
    if splits <= 1 and weight.dtype is torch.float32:
        return 0
    return max(splits, 1) * 4 * count


def _padded(tensor: Tensor) -> int:
    """Bytes, with the second dimension (channels) rounded up."""
    channels = tensor.size(1)
    vector = _VECTOR_BYTES // tensor.element_size()
    rounded = -(-channels // vector) * vector
    return tensor.numel() // max(1, channels) * rounded * tensor.element_size()
