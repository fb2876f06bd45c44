"""Every private name of torch's ways to spread a training over ranks that memlens reads or hooks into.

As in `torch_private`, each is looked for when it is needed. What a torch does not have is said once, as a
problem of the capture, and the memory that it would have told of is inferred from what made it.
Seen in torch 2.9 to 2.13.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["CLASSES", "READS", "WRAPPED", "Private", "living"]

CLASSES = {
    "FSDP2 group": "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup",
    "FSDP1 handle": "torch.distributed.fsdp._flat_param:FlatParamHandle",
    "FSDP1 runtime": "torch.distributed.fsdp._runtime_utils:",
}
"""What is hooked into: a class, or the functions of a module."""

WRAPPED = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""Attributes by which modules hold the one that they stand for."""

READS: dict[str, dict[str, str]] = {
    "FSDP2 group": {
        "fsdp_params": "its parameters",
        "comm_ctx": "buffers that its groups share",
        "_all_gather_result": "the buffer that is gathered into",
        "_module_fqn": "the name of its module",
        "unshard": "the gathering of its parameters",
        "wait_for_unshard": "the end of it",
        "reshard": "the release of gathered parameters",
        "post_backward": "the reduction of its gradients",
    },
    "FSDP2 parameter": {
        "sharded_param": "this rank's shard",
        "_sharded_param_data": "the shard with its padding",
        "all_gather_outputs": "the gathered parameter",
        "unsharded_accumulated_grad": "a gradient that is not reduced yet",
        "_unsharded_param?": "the gathered parameter, once there was one",
        "_unsharded_inner_tensors?": "what a gathered parameter of another class is made of",
        "_sharded_post_forward_param_data?": "a shard for fewer ranks",
    },
    "FSDP2 buffers": {
        "reduce_scatter_states?": "what is being reduced",
        "reduce_scatter_state?": "the same, where there is one at a time",
        "reduce_scatter_input": "the buffer that is reduced",
        "all_gather_output": "the buffer that is gathered into",
    },
    "DTensor": {
        "_local_tensor": "this rank's part",
    },
    "FSDP1 handle": {
        "flat_param": "the flat parameter",
        "_fully_sharded_module": "whose parameters it holds",
        "pre_unshard": "the cast of its shard",
        "unshard": "the gathering of its parameters",
        "reshard": "the release of gathered parameters",
        "init_flat_param_attributes": "the making of its buffers",
    },
    "FSDP1 flat parameter": {
        "_param_infos": "which parameters it holds",
        "_params": "these, where they are kept",
        "_numels": "how many elements each has",
        "_numels_with_padding": "the same, with what is between them",
        "_is_padding_mask": "what is between them",
        "_shard_param_infos?": "which elements of each are in the shard, once it is sharded",
        "_local_shard?": "this rank's shard, once the model was called",
        "_full_param_padded?": "the gathered parameters",
        "_full_prec_full_param_padded?": "the gathered parameters before they are cast",
        "_mp_shard?": "the shard in low precision",
        "_saved_grad_shard?": "the shard's gradients, within backward",
        "_cpu_grad?": "the shard's gradients, where they are offloaded",
    },
    "FSDP1 runtime": {
        "_post_backward_hook": "the reduction of gradients",
    },
    "ZeroRedundancyOptimizer": {
        "_buckets": "the buckets that its parameters are views of",
    },
}
"""By what it belongs to: attributes and functions; those that end in `?` are there only at times."""


class Private:
    """Finds private classes, reads their attributes, and says what is missing, once each.

    Args:
        problem: takes a sentence about what the capture lacks.
    """

    def __init__(self, problem: Callable[[str], None]) -> None:
        self._problem = problem

    def owner(self, kind: str) -> Any:
        """The class or module of the table; None if this torch has none."""
        module, _, name = CLASSES[kind].partition(":")
        try:
            found: Any = import_module(module)
            return getattr(found, name) if name else found
        except (ImportError, AttributeError):
            self._problem(
                f"this torch has no {CLASSES[kind].rstrip(':')}; what it holds is inferred"
            )
            return None

    def has(self, kind: str, owner: Any, name: str) -> bool:
        """Whether a function of the table is there."""
        if callable(getattr(owner, name, None)):
            return True
        self._miss(kind, owner, name)
        return False

    def read(self, kind: str, owner: Any, name: str) -> Any:
        """An attribute of the table; None if it is not there."""
        found = getattr(owner, name, _MISSING)
        if found is not _MISSING:
            return found
        if f"{name}?" not in READS[kind]:
            self._miss(kind, owner, name)
        return None

    def _miss(self, kind: str, owner: Any, name: str) -> None:
        self._problem(
            f"{kind} of this torch has no {name} ({READS[kind][name]}); "
            "what depends on it is inferred"
        )


def living(kind: type) -> weakref.WeakSet[Any]:
    """Objects of a class that are there already."""
    return weakref.WeakSet(each for each in gc.get_objects() if issubclass(type(each), kind))


_MISSING = object()
