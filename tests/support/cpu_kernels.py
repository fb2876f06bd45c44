"""What the CPU's kernels take for themselves while they run, as `memlens.simulation` has it for CUDA's.

With one thread. Only of those that the jobs of `tests/simulation/test_same_events.py` use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["temporaries"]


def temporaries(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any
) -> tuple[int, ...]:
    """As `memlens.simulation.kernels.temporaries.temporaries`."""
    name = func._schema.name.partition("::")[2]
    if name == "native_layer_norm_backward":
        # cpu/layer_norm_kernel.cpp: sums of weight's and bias' gradients of each thread.
        return (2 * outputs[1].nbytes,) if outputs[1] is not None else ()
    if name == "cumsum":
        # ReduceOps.cpp, for CUDA as well: what is summed is cast first.
        return (outputs.nbytes,) if outputs.dtype is not args[0].dtype else ()
    if name == "log_sigmoid_forward":
        # cpu/Activation.cpp: CUDA's computes it again in backward.
        return (outputs[0].nbytes,)
    if name == "embedding_dense_backward":
        # Embedding.cpp
        return (args[1].nbytes,) if not args[1].is_contiguous() else ()
    return ()
