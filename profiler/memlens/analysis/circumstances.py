"""What was going on when a request for memory failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memlens.analysis.fit import Fit
from memlens.analysis.frames import user_frames
from memlens.answers import Allocation, Frame, Growth, OutOfMemory
from memlens.events import Category, Phase

__all__ = ["Circumstances", "loss_frame"]

_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Circumstances:
    """All that changes to the job are judged by."""

    event: OutOfMemory
    fit: Fit
    phase: Phase
    blocks: Sequence[Allocation]
    """All that were alive."""
    world_size: int
    growth: Sequence[Growth] = ()
    """What accumulates from step to step."""

    def held(self, *categories: Category) -> int:
        """Bytes alive of some categories."""
        return sum(block.size_bytes for block in self.blocks if block.category in categories)

    def largest(self, category: Category) -> int:
        """The largest single block of a category."""
        sizes = [block.size_bytes for block in self.blocks if block.category is category]
        return max(sizes, default=0)

    def state_names(self) -> set[str]:
        """What the optimizer calls its state: `exp_avg`, `momentum_buffer`."""
        return {
            block.name.split(" of ")[0]
            for block in self.blocks
            if block.category is Category.OPTIMIZER_STATE and " of " in block.name
        }

    def recomputed_bytes(self) -> int:
        """Activations that layers of which there are several by number would not keep."""
        stacks: dict[str, dict[str, list[Allocation]]] = {}
        for block in self.blocks:
            found = _LAYER.match(block.module) if block.category is Category.ACTIVATION else None
            if found:
                stacks.setdefault(found[1], {}).setdefault(found[2], []).append(block)
        saved, largest = 0, 0
        for stack, layers in stacks.items():
            if len(layers) < 2:
                continue
            for number, kept in layers.items():
                # What a layer hands on is made by itself, as a rule (the sum with the residual).
                own = [block for block in kept if block.module == f"{stack}.{number}"]
                boundary = max(block.size_bytes for block in own or kept)
                rest = sum(block.size_bytes for block in kept) - boundary
                saved += rest
                largest = max(largest, rest)
        return saved - largest


def loss_frame(stack: Sequence[Frame]) -> Frame | None:
    """The job's line, where a stack leads through torch's cross entropy."""
    if not any(frame.function == "cross_entropy" for frame in stack):
        return None
    frames = user_frames(tuple(stack), 1)
    return frames[0] if frames else None
