"""ZeRO as DeepSpeed does it: which rank holds what, at every stage.

Derived from DeepSpeed's partitioning, and held against its own tensors by tests/sharding. What is not
modelled: MoE groups, model and sequence parallelism, hpZ, quantised weights, NVMe, ZenFlow, Muon.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlens.errors import UsageError
from memlens.sharding.layout import Parameter, RankLayout, check_rank

__all__ = ["ELEMENT_BYTES", "Zero", "zero_layout"]

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MASTER_BYTES = 4


@dataclass(frozen=True)
class Zero:
    """What a ds_config says, with DeepSpeed's defaults. Sizes of buckets are in elements.

    `allgather_bucket_size` is not among them: updated weights are gathered in their place.
    """

    stage: int
    world_size: int
    precision: str = "bf16"
    """`fp32`, `bf16` or `fp16`: of weights and of gradients within backward."""
    accumulation: str | None = None
    """`data_types.grad_accum_dtype`; None: that of the weights."""
    gradient_accumulation_steps: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce_bucket_size: int = 500_000_000
    overlap_comm: bool | None = None
    """None: at stage 3 only."""
    contiguous_gradients: bool = True
    round_robin_gradients: bool = False
    parameter_alignment: bool = False
    prefetch_bucket_size: int = 50_000_000
    parameter_persistence_threshold: int = 100_000
    model_persistence_threshold: int = sys.maxsize
    max_live_parameters: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.stage not in range(4):
            raise UsageError(f"there is no ZeRO stage {self.stage}; stages are 0, 1, 2 and 3")
        if self.world_size < 1:
            raise UsageError(f"a world has at least one rank, not {self.world_size}")
        for each in (self.precision, self.accumulation):
            if each is not None and each not in ELEMENT_BYTES:
                raise UsageError(f"not a precision: {each!r}; write {', '.join(ELEMENT_BYTES)}")
        if self.offload_parameters and self.stage < 3:
            raise UsageError(
                "DeepSpeed offloads parameters at stage 3 only; leave offload_param out"
            )

    @property
    def weight_bytes(self) -> int:
        """Of an element of the weights."""
        return ELEMENT_BYTES[self.precision]

    @property
    def accumulation_bytes(self) -> int:
        """Of an element of accumulated gradients."""
        return ELEMENT_BYTES[self.accumulation or self.precision]

    @property
    def accumulates_apart(self) -> bool:
        """Gradients are accumulated in another dtype than that of the weights."""
        return self.accumulation not in (None, self.precision)

    @property
    def overlaps(self) -> bool:
        """Reduction runs beside backward; at stages 1 and 2 that takes a second bucket."""
        return self.stage == 3 if self.overlap_comm is None else self.overlap_comm

    @property
    def contiguous(self) -> bool:
        """Gradients are copied into buckets; offload needs that."""
        return self.contiguous_gradients or (self.offload_optimizer and self.stage < 3)

    @property
    def dedicated_bf16(self) -> bool:
        """DeepSpeed takes its BF16_Optimizer, which keeps all gradients in fp32 on every rank."""
        return (
            self.stage == 1
            and self.precision == "bf16"
            and self.accumulation == "fp32"
            and not self.offload_optimizer
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], world_size: int) -> Zero:
        """Read a ds_config. What is `auto` is taken to be DeepSpeed's default.

        Args:
            config: as it stands in the JSON file.
            world_size: how many ranks share the partitions.
        """
        zero = config.get("zero_optimization") or {}

        def enabled(name: str) -> bool:
            return bool((config.get(name) or {}).get("enabled") is True)

        def offloads(name: str, old: str) -> bool:
            device = (zero.get(name) or {}).get("device", "none")
            return device not in ("none", None) or zero.get(old) is True

        given: dict[str, Any] = {}
        for ours, theirs in _NAMES.items():
            values = [zero[name] for name in theirs if zero.get(name, "auto") != "auto"]
            if values and values[0] is not None:
                value = values[0]
                given[ours] = value if isinstance(value, bool) else int(value)
        steps = config.get("gradient_accumulation_steps", 1)
        accumulation = (config.get("data_types") or {}).get("grad_accum_dtype")
        precision = "bf16" if enabled("bf16") or enabled("bfloat16") else "fp32"
        return cls(
            stage=int(zero.get("stage", 0)),
            world_size=world_size,
            precision="fp16" if enabled("fp16") else precision,
            accumulation=_PRECISIONS.get(str(accumulation), accumulation),
            gradient_accumulation_steps=1 if steps in ("auto", None) else int(steps),
            offload_optimizer=offloads("offload_optimizer", "cpu_offload"),
            offload_parameters=offloads("offload_param", "cpu_offload_param"),
            **given,
        )


_NAMES = {
    "reduce_bucket_size": ("reduce_bucket_size",),
    "overlap_comm": ("overlap_comm",),
    "contiguous_gradients": ("contiguous_gradients",),
    "round_robin_gradients": ("round_robin_gradients",),
    "parameter_alignment": ("parameter_alignment",),
    "sub_group_size": ("sub_group_size",),
    "prefetch_bucket_size": ("stage3_prefetch_bucket_size", "prefetch_bucket_size"),
    "parameter_persistence_threshold": (
        "stage3_param_persistence_threshold",
        "param_persistence_threshold",
    ),
    "model_persistence_threshold": (
        "stage3_model_persistence_threshold",
        "model_persistence_threshold",
    ),
    "max_live_parameters": ("stage3_max_live_parameters", "max_live_parameters"),
}
"""Our names, and under which DeepSpeed reads them."""
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "None": None}


def zero_layout(
    zero: Zero,
    parameters: Sequence[Parameter],
    rank: int,
    groups: Sequence[Sequence[str]] | None = None,
) -> RankLayout:
    """Say what one rank holds.

    Args:
        zero: the configuration.
        parameters: of the model, in its order; each once.
        rank: which.
        groups: names of the parameters in each group of the optimizer; None: one group has them all.

    Raises:
        UsageError: DeepSpeed has no such combination, or it is not modelled.
    """
    from memlens.sharding.zero_flat import flat_layout
    from memlens.sharding.zero_none import unsharded_layout
    from memlens.sharding.zero_partitioned import partitioned_layout

    check_rank(rank, zero.world_size)
    by_name = {each.name: each for each in parameters}
    if len(by_name) != len(parameters):
        raise ValueError("two parameters have one name")
    names = [list(by_name)] if groups is None else groups
    # DeepSpeed takes frozen and empty parameters out of the groups.
    optimized = [
        [by_name[name] for name in group if by_name[name].trainable and by_name[name].elements]
        for group in names
    ]
    optimized = [group for group in optimized if group]
    make = (unsharded_layout, flat_layout, flat_layout, partitioned_layout)[zero.stage]
    return make(zero, parameters, optimized, rank)
