"""What a built-in job holds at least on each of several GPUs, from the layout alone: no activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.measured import measured
from memlens.catalogue.table import find
from memlens.events import Category
from memlens.sharding.fsdp import Fsdp, fsdp_layout
from memlens.sharding.layout import Held, Parameter, RankLayout, State, total_bytes
from memlens.sharding.zero import Zero, zero_layout

if TYPE_CHECKING:
    from memlens.catalogue.row import Row
    from memlens.catalogue.variant import Variant

__all__ = ["Floor", "parameters_of"]

REUSE = "gradient reuse"
"""Family of optimizers whose step may give gradients another use."""
MANY_RANKS = 128
"""Up to so many, each rank is looked at to find the fullest one."""


@dataclass(frozen=True)
class Floor:
    """A lower bound: the job holds this, and more besides."""

    parameters: tuple[Parameter, ...]
    mode: ShardingMode
    variant: Variant
    config: Mapping[str, object]
    """The ds_config; without meaning under FSDP."""
    offload: bool = False
    """Under FSDP: shards are on the host."""

    def bytes_at(self, world_size: int, rank: int = 0) -> int:
        """On the device, at a time when all of it is there at once."""
        return sum(self.categories_at(world_size, rank).values())

    def categories_at(self, world_size: int, rank: int = 0) -> dict[Category, int]:
        """The same by what it is."""
        layout = self._layout(world_size, rank)
        gradients, buffers = self._at_the_end_of_backward(layout)
        return {
            Category.WEIGHT: _on_device(layout.weights),
            Category.MASTER_WEIGHT: _on_device(layout.master_weights),
            Category.GRADIENT: gradients,
            Category.OPTIMIZER_STATE: self._state.of(
                each for each in layout.optimizer_tensors if not each.on_host
            ),
            Category.COMMUNICATION: buffers,
        }

    def fullest_rank(self, world_size: int) -> int:
        """The rank that holds most; of very many, the first one stands for all."""
        if world_size > MANY_RANKS:
            return 0
        return max(range(world_size), key=lambda rank: self.bytes_at(world_size, rank))

    def fewest(self, usable_bytes: int, most: int) -> int | None:
        """The smallest number of GPUs on which this much fits; None: not even on the most."""
        if self.bytes_at(most) > usable_bytes:
            return None
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.bytes_at(middle) > usable_bytes:
                low = middle
            else:
                high = middle
        return high

    def _layout(self, world_size: int, rank: int) -> RankLayout:
        if self.mode.stage is None:
            fsdp = Fsdp(world_size, offload=self.offload)
            return fsdp_layout(fsdp, [self.parameters], rank)[0]
        config = {**self.config}
        zero = config.get("zero_optimization")
        settings = dict(zero) if isinstance(zero, Mapping) else {}
        config["zero_optimization"] = {**settings, "stage": self.mode.stage}
        return zero_layout(Zero.from_config(config, world_size), self.parameters, rank)

    def _at_the_end_of_backward(self, layout: RankLayout) -> tuple[int, int]:
        """Gradients and the buckets they are reduced in; or in step, where that is more."""
        buffers = _on_device(layout.communication)
        row = self._row
        if self.variant.no_retain_grad or row.always_in_backward:
            return 0, 0
        after = _on_device(layout.gradients_after_backward)
        within = max((_on_device(each) for each in layout.gradients_in_step), default=0)
        if row.family == REUSE or after + buffers >= within:
            return after, buffers
        return within, 0

    @property
    def _row(self) -> Row:
        """A built-in job has AdamW of its own."""
        return self.variant.row or find("adamw")

    @cached_property
    def _state(self) -> State:
        """The least that the catalogue has, of whichever shape."""
        figures = None if self.variant.options else measured(self._row.name, "fp32")
        if figures is None:
            return State(0, 0)
        return State(min(figures.matrix_state, figures.vector_state), 0)


def parameters_of(model: str) -> tuple[Parameter, ...]:
    """The parameters of a model of the table, in its order; loads torch and transformers."""
    from memlens.models.build import build_model

    network = build_model(model, device="meta")
    return tuple(
        Parameter(name, tuple(each.shape), each.element_size(), each.requires_grad)
        for name, each in network.named_parameters()
    )


def _on_device(storages: Sequence[Held]) -> int:
    return total_bytes(storages, on_host=False)
