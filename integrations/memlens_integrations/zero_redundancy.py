"""ZeroRedundancyOptimizer: each rank updates some parameters, and the state of these is all that it has.

The state is that of an ordinary optimizer inside, which needs no adapter. With
`parameters_as_bucket_view=True` parameters are moved into one buffer per rank that updates them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from memlens.adapters import Holding, watch_calls
from memlens.events import Category
from memlens.recording.recorder import Recorder
from memlens.torch_private_distributed import Private, living

__all__ = ["ZeroRedundancyAdapter"]

_KIND = "ZeroRedundancyOptimizer"


class ZeroRedundancyAdapter:
    """Knows the buffers that parameters are views of."""

    library = "torch.distributed.optim.zero_redundancy_optimizer"

    def __init__(self) -> None:
        self._optimizers: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Learn of optimizers as they are made."""
        from torch.distributed.optim import ZeroRedundancyOptimizer

        self._private = Private(recorder.problem)
        self._optimizers = living(ZeroRedundancyOptimizer)
        watch_calls(
            recorder,
            undo,
            ZeroRedundancyOptimizer,
            "__init__",
            after=lambda optimizer, *_: self._optimizers.add(optimizer),
        )

    def sharding(self) -> Iterable[str]:
        """Whether it is in use."""
        return ["ZeroRedundancyOptimizer"] if len(self._optimizers) else []

    def holdings(self) -> Iterable[Holding]:
        """The buffers; their views, which are the parameters, name their parts."""
        for optimizer in list(self._optimizers):
            for buckets in self._private.read(_KIND, optimizer, "_buckets") or ():
                for rank, bucket in enumerate(buckets):
                    yield Holding(bucket, Category.WEIGHT, f"parameters that rank {rank} updates")
