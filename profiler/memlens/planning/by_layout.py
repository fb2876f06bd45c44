"""A plan without a simulation: what a rank holds by the documented layout of its shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.gpus import Gpu
from memlens.events import Category
from memlens.planning.ranks import Ranks

__all__ = ["LayoutPlan"]


@dataclass(frozen=True)
class LayoutPlan:
    """What is known of a job that cannot be simulated; activations and temporaries are not."""

    reason: str
    """Why it cannot be."""
    ranks: Ranks
    mode: ShardingMode
    categories: Mapping[Category, int]
    """On the device when all of it is there at once, in bytes."""
    gpu: Gpu | None
    """The card that was asked about; None: none was."""

    @property
    def held_bytes(self) -> int:
        """In all: the least that the job needs."""
        return sum(self.categories.values())

    @property
    def fits(self) -> bool | None:
        """False: it does not; None: that cannot be said."""
        if self.gpu is not None and self.held_bytes > self.gpu.usable_bytes:
            return False
        return None

    def to_json(self) -> dict[str, Any]:
        """For programs; sizes are whole bytes."""
        return {
            "simulated": False,
            "reason": self.reason,
            **self.ranks.to_json(),
            "sharding": self.mode.value,
            "held_bytes": self.held_bytes,
            "categories": {kind.value: size for kind, size in self.categories.items()},
            "fits": self.fits,
        }
