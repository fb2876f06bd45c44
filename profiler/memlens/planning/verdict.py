"""Whether a job fits on a card, and if it does not, where it would run out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memlens.answers import Frame
from memlens.catalogue.gpus import CONTEXT_BYTES, Gpu
from memlens.events import Category, Phase
from memlens.rank import RankCapture

__all__ = ["Shortage", "Verdict", "judge"]


@dataclass(frozen=True)
class Shortage:
    """The first request that a card could not serve, and what there was at that moment."""

    requested_bytes: int
    name: str
    """What the observers call what was to be allocated; may be empty."""
    category: Category
    step: int
    phase: Phase
    module: str
    stack: tuple[Frame, ...]
    allocated_bytes: int
    reserved_bytes: int
    categories: Mapping[Category, int]
    """What was alive; sums to `allocated_bytes`."""


@dataclass(frozen=True)
class Verdict:
    """What a card makes of a job."""

    gpu: Gpu
    fits: bool
    reserved_peak_bytes: int
    """With as much memory as the job likes."""
    retries: bool
    """It fits only since the allocator, when short, gives back what it has cached; that costs time."""
    shortage: Shortage | None

    @property
    def device_bytes(self) -> int:
        """Estimated use of the device: what is reserved, and driver, context and libraries beside it."""
        return self.reserved_peak_bytes + CONTEXT_BYTES

    @property
    def headroom_bytes(self) -> int:
        """What is left of the card's usable memory; negative: what is missing."""
        return self.gpu.usable_bytes - self.reserved_peak_bytes

    def to_json(self) -> dict[str, Any]:
        """For other programs; sizes are whole bytes."""
        short = self.shortage
        return {
            "gpu": self.gpu.name,
            "total_bytes": self.gpu.total_bytes,
            "usable_bytes": self.gpu.usable_bytes,
            "fits": self.fits,
            "reserved_peak_bytes": self.reserved_peak_bytes,
            "context_bytes": CONTEXT_BYTES,
            "device_bytes": self.device_bytes,
            "headroom_bytes": self.headroom_bytes,
            "retries": self.retries,
            "shortage": short
            and {
                "requested_bytes": short.requested_bytes,
                "name": short.name,
                "category": short.category.value,
                "step": short.step,
                "phase": short.phase.value,
                "module": short.module,
                "allocated_bytes": short.allocated_bytes,
                "reserved_bytes": short.reserved_bytes,
                "categories": {each.value: size for each, size in short.categories.items()},
                "stack": [
                    {"function": each.function, "file": each.file, "line": each.line}
                    for each in short.stack
                ],
            },
        }


def judge(rank: RankCapture, gpu: Gpu) -> Verdict:
    """Let the model of the allocator serve a rank's requests on a card.

    Args:
        rank: of a capture that tells of the allocator's segments.
        gpu: what it is to run on.
    """
    peak = rank.reserved_peak_bytes or 0
    if peak <= gpu.usable_bytes:
        return Verdict(gpu, True, peak, retries=False, shortage=None)
    replayed = rank.replayed(capacity_bytes=gpu.usable_bytes)
    short = replayed.out_of_memory
    if short is None:
        return Verdict(gpu, True, peak, retries=True, shortage=None)
    block = rank.block_of(short.event)
    moment = block.alloc_ns - 1  # before it
    place = rank.place_at(block.alloc_ns)
    return Verdict(
        gpu,
        False,
        peak,
        retries=True,
        shortage=Shortage(
            requested_bytes=short.requested_bytes,
            name=block.name,
            category=block.category,
            step=place.step,
            phase=place.phase,
            module=place.module,
            stack=block.stack,
            allocated_bytes=short.allocated_bytes,
            reserved_bytes=short.reserved_bytes,
            categories=rank.categories_at(moment),
        ),
    )
