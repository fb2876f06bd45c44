"""DistributedDataParallel: its gradient buckets are communication memory.

The buckets are made in C++, when the model is wrapped and once more in the forward after the first
backward, in the order in which gradients came. No Python object holds them.
"""

from __future__ import annotations

from contextlib import ExitStack

from memlens.adapters import mark_scope
from memlens.events import Category
from memlens.recording.recorder import Recorder

__all__ = ["DistributedDataParallelAdapter"]


class DistributedDataParallelAdapter:
    """Marks what DDP does besides calling the model."""

    library = "torch.nn.parallel"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Wrap the constructor and what runs before the model's own forward."""
        from torch.nn.parallel import DistributedDataParallel

        for name in ("__init__", "_pre_forward"):
            if hasattr(DistributedDataParallel, name):
                mark_scope(
                    recorder,
                    undo,
                    DistributedDataParallel,
                    name,
                    text=f"DistributedDataParallel.{name}",
                    survivors=Category.COMMUNICATION,
                )
