"""DistributedDataParallel: the buckets in which it reduces gradients.

They are made in C++, when the model is wrapped and once more in the forward after the first backward, in
the order in which gradients came. No Python object holds them, so that they are known by what makes them:
communication. With `gradient_as_bucket_view=True` the gradients are views of them, and there are no
others: these buckets are gradients, from their beginning to their end.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch.nn.parallel import DistributedDataParallel

from memlens.adapters import Holding, mark_scope, watch_calls
from memlens.events import Category
from memlens.recording.recorder import Recorder
from memlens.torch_private_distributed import living

__all__ = ["DistributedDataParallelAdapter"]


class DistributedDataParallelAdapter:
    """Marks what DDP does besides calling the model."""

    library = "torch.nn.parallel"

    def __init__(self) -> None:
        self._models: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Wrap the constructor and what runs before the model's own forward."""
        self._models = living(DistributedDataParallel)
        for name in ("__init__", "_pre_forward"):
            if hasattr(DistributedDataParallel, name):
                mark_scope(
                    recorder,
                    undo,
                    DistributedDataParallel,
                    name,
                    text="DDP bucket of gradients",
                    survivors=Category.COMMUNICATION,
                )
        watch_calls(
            recorder,
            undo,
            DistributedDataParallel,
            "__init__",
            after=lambda model, *_: self._models.add(model),
        )

    def sharding(self) -> Iterable[str]:
        """Whether it is in use."""
        return ["DDP"] if len(self._models) else []

    def holdings(self) -> Iterable[Holding]:
        """Buckets that gradients are views of; the views name their parts."""
        for model in list(self._models):
            if not getattr(model, "gradient_as_bucket_view", False):
                continue
            seen = set()
            for parameter in model.parameters():
                gradient = parameter.grad
                if gradient is None or gradient.layout is not torch.strided:
                    continue
                storage = gradient.untyped_storage()
                if storage.data_ptr() in seen:
                    continue
                seen.add(storage.data_ptr())
                elements = storage.nbytes() // gradient.element_size()
                if elements > gradient.numel():
                    with torch.no_grad():
                        bucket = gradient.as_strided((elements,), (1,), 0)
                    yield Holding(bucket, Category.GRADIENT, "DDP bucket of gradients")
