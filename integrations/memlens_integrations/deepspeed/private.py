"""Everything private of DeepSpeed that memlens reads or hooks into, and how it copes without.

Nothing else in memlens names such an attribute or function. Each is looked for when it is needed: what a
version does not have is said once, as a problem of the capture, and is then inferred from lifetimes.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from memlens.adapters import watch_calls
from memlens.events import Category
from memlens.recording.recorder import Recorder

__all__ = [
    "CALLS",
    "CLASSES",
    "COMPARISONS",
    "IN_PLACE_OPERATORS",
    "LOADER",
    "OVERFLOW_CHECKS",
    "READS",
    "Private",
    "Read",
    "find_private",
]

CLASSES = {
    "flat": "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer",
    "bf16": "deepspeed.runtime.bf16_optimizer:BF16_Optimizer",
    "stage 3": "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3",
    "partitioned": "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload",
    "fused": "deepspeed.runtime.fp16.fused_optimizer:FP16_Optimizer",
    "unfused": "deepspeed.runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer",
}
"""Short name -> class that holds memory: of stages 1 and 2; of stage 1 with bfloat16 and float32
gradients; of stage 3; of stage 3's weights, also without an optimizer; of stage 0 with master weights."""


@dataclass(frozen=True)
class Read:
    """An attribute that is read.

    Attributes:
        names: what it is called, newest first.
        category: what the tensors in it are; None for bookkeeping.
        text: what it is.
        optional: only some configurations have it, so that it is not missed.
    """

    names: tuple[str, ...]
    category: Category | None
    text: str
    optional: bool = False


def _reads(*rows: tuple[str, Category | None, str]) -> dict[str, Read]:
    """Rows of (names, category, text); `a|b` is called b in older versions, `a?` is optional."""
    found = {}
    for names, category, text in rows:
        optional = names.endswith("?")
        every = tuple(names.rstrip("?").split("|"))
        found[every[0]] = Read(every, category, text, optional)
    return found


_WEIGHT, _MASTER = Category.WEIGHT, Category.MASTER_WEIGHT
_GRADIENT, _COMMUNICATION = Category.GRADIENT, Category.COMMUNICATION
_TEMPORARY = Category.OPTIMIZER_TEMPORARY
_STAGE_3 = "_DeepSpeedZeroOptimizer_Stage3"

READS: dict[str, dict[str, Read]] = {
    "flat": _reads(
        ("bit16_groups_flat", _WEIGHT, "flat weights of each group"),
        ("single_partition_of_fp32_groups", _MASTER, "this rank's master weights of each group"),
        ("averaged_gradients", _GRADIENT, "gradients of this rank's partition of each group"),
        ("grads_in_partition?", _GRADIENT, "what averaged gradients are moved into by backward"),
        ("all_grad_tensors?", _GRADIENT, "gradients that are accumulated, of each group"),
        ("flat_partition?", _GRADIENT, "of averaged gradients, where they are flat"),
        ("accumulated_grads_in_cpu?", _GRADIENT, "gradients that are accumulated on the host"),
        ("grad_accum?", _GRADIENT, "of a parameter: gradient in the dtype of accumulation"),
        ("ipg_buckets|ipg_buffer", _COMMUNICATION, "buckets in which gradients are reduced"),
        (
            "param_buffer_of_bit16_for_cpu_offload_groups?",
            _COMMUNICATION,
            "updated weights to send",
        ),
        ("temp_grad_buffer_for_cpu_offload?", _GRADIENT, "a gradient on its way to the host"),
        ("temp_grad_buffer_for_gpu_offload?", _GRADIENT, "a gradient on its way back"),
        ("_muon_allgather_buffers?", _COMMUNICATION, "partitions that Muon gathers"),
        ("_global_grad_norm?", _TEMPORARY, "norm of the last gradients"),
        ("norm_for_param_grads?", _TEMPORARY, "norms of offloaded gradients"),
        ("partition_gradients?", None, "whether it is stage 2"),
        ("bit16_groups", None, "parameters of each group"),
        ("round_robin_bit16_groups", None, "the same, as they lie in the flat weights"),
        ("round_robin_bit16_offsets?", None, "where each of them begins"),
        ("params_in_partition", None, "those of them that lie in this rank's partition"),
        ("partition_size", None, "elements of each group's partition"),
        ("real_dp_process_group", None, "who shares each group"),
        ("param_dict?", None, "parameters by the numbers that DeepSpeed gives them"),
    ),
    "bf16": _reads(
        ("bf16_groups_flat", _WEIGHT, "flat weights of each group"),
        ("fp32_groups_flat_partition", _MASTER, "this rank's master weights of each group"),
        ("fp32_groups_gradients_flat", _GRADIENT, "gradients of each whole group"),
        ("_global_grad_norm?", _TEMPORARY, "norm of the last gradients"),
        ("bf16_groups", None, "parameters of each group, as they lie in the flat weights"),
        ("real_dp_process_group", None, "who shares each group"),
    ),
    "stage 3": _reads(
        ("fp32_partitioned_groups_flat", _MASTER, "this rank's master weights of each sub-group"),
        ("grad_partitions_flat_buffer", _GRADIENT, "gradients of this rank's partitions"),
        (
            f"ipg_buckets|{_STAGE_3}__ipg_bucket_flat_buffer",
            _COMMUNICATION,
            "where they are reduced",
        ),
        ("lp_param_buffer?", _WEIGHT, "this rank's partitions"),
        ("fp16_partitioned_groups_flat", _WEIGHT, "the same, by sub-groups"),
        ("_muon_allgather_buffers?", _COMMUNICATION, "partitions that Muon gathers"),
        ("_global_grad_norm?", _TEMPORARY, "norm of the last gradients"),
        ("norm_for_param_grads?", _TEMPORARY, "norms of offloaded gradients"),
        ("fp16_groups", None, "parameters of each sub-group, in the order of their partitions"),
    ),
    "partitioned": _reads(
        ("module", None, "whose parameters are partitioned"),
    ),
    "fused": _reads(
        ("fp16_groups_flat", _WEIGHT, "flat weights of each group"),
        ("fp32_groups_flat", _MASTER, "master weights of each group"),
        ("_global_grad_norm?", _TEMPORARY, "norm of the last gradients"),
        ("fp16_groups", None, "parameters of each group, as they lie in the flat weights"),
    ),
    "unfused": _reads(
        ("fp32_groups", _MASTER, "master weights of each group"),
        ("_global_grad_norm?", _TEMPORARY, "norm of the last gradients"),
        ("fp16_groups", None, "parameters of each group"),
    ),
    "any": _reads(
        ("optimizer", None, "the optimizer of torch's that it steps"),
    ),
    "parameter": _reads(
        ("ds_tensor", _WEIGHT, "this rank's partition of a parameter"),
        ("ds_secondary_tensor?", _WEIGHT, "its partition within the node"),
        ("ds_numel", None, "elements of the whole parameter"),
        ("ds_persist", None, "whether it stays gathered"),
        ("ds_process_group", None, "who shares it"),
    ),
    "gather": _reads(
        ("params", None, "parameters that are gathered together"),
        ("partitions", _COMMUNICATION, "each rank's part of the buffer"),
    ),
}
"""By class (that of `CLASSES`; any of those; parameters of stage 3; gathers of several): what is read."""

CALLS: dict[str, tuple[str, ...]] = {
    "every gradient of stages 1 and 2": (
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.process_gradients",
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.reduce_ready_partitions_and_remove_grads",
    ),
    "end of a reduction in stages 1 and 2": (
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._release_ipg_buffers",
    ),
    "every gradient of stage 3": (
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.reduce_ready_partitions_and_remove_grads",
    ),
    "fetching of a module's parameters": (
        "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator.fetch_sub_module",
    ),
    "gathering of parameters": ("deepspeed.runtime.zero.partition_parameters:Init._all_gather",),
    "gathering of several parameters at once": (
        "deepspeed.runtime.zero.partition_parameters:AllGatherCoalescedHandle.__init__",
    ),
    "partitioning of a parameter": (
        "deepspeed.runtime.zero.partition_parameters:Init._partition_param",
    ),
    "reduction in stages 1 and 2": (
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.average_tensor",
    ),
    "reduction in stage 3": (
        f"deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.{_STAGE_3}__avg_scatter_grads",
    ),
    "reduction of a bucket in stage 3": (
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3."
        f"{_STAGE_3}__avg_scatter_contiguous_grads",
    ),
    "reduction of whole gradients": (
        "deepspeed.runtime.engine:DeepSpeedEngine.allreduce_and_copy",
    ),
    "gathering of updated weights in stages 1 and 2": (
        "deepspeed.runtime.zero.stage_1_and_2:all_gather_dp_groups",
    ),
    "gathering of updated weights with float32 gradients": (
        "deepspeed.runtime.bf16_optimizer:all_gather_dp_groups",
    ),
}
"""What is hooked into -> the function, newest first."""

STEP = "step"
"""Of an optimizer: steps one of torch's, some of them once for each group."""
SET_UP = "initialize_optimizer_states"
"""Of an optimizer: the same, but for the state that it makes, some of them."""


def find_private(path: str) -> tuple[Any, str]:
    """Owner and name of `module:Class.function`; no owner (None) where this version has none."""
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    try:
        owner: Any = functools.reduce(getattr, owners, import_module(module))
    except (ImportError, AttributeError):
        return None, name
    return (owner if hasattr(owner, name) else None), name


class Private:
    """Reads private attributes and wraps private functions, and says what is missing, once each.

    Args:
        recorder: of the session.
        undo: gets the ways back.
    """

    def __init__(self, recorder: Recorder, undo: ExitStack) -> None:
        self._recorder = recorder
        self._undo = undo
        self._seen: dict[int, weakref.ref[Any]] = {}

    def is_new(self, tensor: Any) -> bool:
        """Whether this is asked of a tensor for the first time."""
        seen = self._seen.get(id(tensor))
        if seen is not None and seen() is tensor:
            return False
        self._seen[id(tensor)] = weakref.ref(tensor)
        return True

    def read(self, kind: str, owner: Any, name: str) -> Any:
        """An attribute of the table; None if it is not there."""
        read = READS[kind][name]
        for each in read.names:
            found = getattr(owner, each, _MISSING)
            if found is not _MISSING:
                return found
        if not read.optional:
            self._recorder.problem(
                f"{type(owner).__name__} of this DeepSpeed has no `{name}` ({read.text}); "
                "what depends on it is inferred"
            )
        return None

    def classes(self) -> Mapping[str, type]:
        """The classes of the table that are there."""
        found = {}
        for kind, path in CLASSES.items():
            owner, name = self._resolve((path,), path.partition(":")[2])
            if owner is not None:
                found[kind] = getattr(owner, name)
        return found

    def find(self, what: str) -> tuple[Any, str] | None:
        """Owner and name of a function of the table; None if no version of it is there."""
        owner, name = self._resolve(CALLS[what], what)
        return None if owner is None else (owner, name)

    def wrap(
        self,
        what: str,
        *,
        before: Callable[..., None] | None = None,
        after: Callable[..., None] | None = None,
    ) -> None:
        """Have a function of the table call others first, or once it is done, with its own arguments."""
        found = self.find(what)
        if found is not None:
            watch_calls(self._recorder, self._undo, *found, before=before, after=after)

    def _resolve(self, paths: tuple[str, ...], what: str) -> tuple[Any, str]:
        for path in paths:
            owner, name = find_private(path)
            if owner is not None:
                return owner, name
        self._recorder.problem(f"this DeepSpeed has no {what} that memlens knows; it is inferred")
        return None, ""


_MISSING = object()


# -- what a simulation changes (simulated.py) -------------------------------------------------------

OVERFLOW_CHECKS = (
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.has_overflow",
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.has_overflow",
    "deepspeed.runtime.utils:CheckOverflow.has_overflow",
    "deepspeed.runtime.utils:CheckOverflow.check_using_norm",
)
"""Whether a gradient is not finite, on any rank."""

COMPARISONS = (
    "deepspeed.runtime.zero.utils:assert_lst_len_same_as_other_ranks",
    "deepspeed.runtime.zero.utils:get_lst_from_rank0",
)
"""What the first rank has, to be compared with: waits for that rank."""

LOADER = "deepspeed.ops.op_builder.builder:OpBuilder.load"
"""Loads compiled operators, and compiles them first."""

IN_PLACE_OPERATORS = frozenset(
    {"fused_adam", "fused_lion", "fused_lamb", "cpu_adam", "cpu_lion", "cpu_adagrad"}
)
"""Names of operators that allocate nothing, and only write into tensors."""
