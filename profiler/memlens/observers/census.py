"""What is there already: a walk over the objects of the process, once, when recording begins."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from itertools import chain

import torch

from memlens.observers.modules import ModuleObserver
from memlens.observers.optimizers import OptimizerObserver
from memlens.observers.parameters import may_read_gradients
from memlens.recording.storages import live_tensors
from memlens.sources.base import Block, Source

__all__ = ["existing_blocks", "learn_existing_objects"]


def learn_existing_objects(modules: ModuleObserver, optimizers: OptimizerObserver) -> None:
    """Show the observers the models and optimizers that were made before the session."""
    found = gc.get_objects()
    modules.learn_existing(
        [
            item
            for item in found
            # One whose constructor has only begun has no attributes yet.
            if issubclass(type(item), torch.nn.Module) and "_modules" in vars(item)
        ]
    )
    for item in found:
        if issubclass(type(item), torch.optim.Optimizer) and hasattr(item, "param_groups"):
            optimizers.learn(item)


def existing_blocks(source: Source, known: Iterable[torch.Tensor] = ()) -> list[Block]:
    """What was allocated before recording began.

    An allocator that keeps a list is asked for it. Otherwise the storages that Python objects hold are
    looked for, and the source watches for their end.

    Args:
        source: tells which memory is its allocator's; other memory (shared, mapped, borrowed from
            NumPy) is left out.
        known: tensors to look at in any case. The garbage collector does not show what a job has
            put out of its sight with `gc.freeze()`.

    Returns:
        Each block, once.
    """
    told = source.existing()
    if told is not None:
        return told
    blocks: dict[int, int] = {}

    def gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
        try:
            is_leaf = tensor.requires_grad and tensor.is_leaf
        except RuntimeError:  # a view of what was changed since, which torch will not tell of
            return None
        # A gradient has no Python object as long as nobody has asked for it.
        return tensor.grad if is_leaf and may_read_gradients() else None

    def add(tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
            address, size_bytes = storage.data_ptr(), storage.nbytes()
        except (RuntimeError, NotImplementedError, ValueError):  # sparse, fake, uninitialised
            return
        if address and size_bytes and address not in blocks and source.owns(storage):
            blocks[address] = size_bytes
            source.watch(storage)

    for tensor in live_tensors(chain(gc.get_objects(), known), source.device_type):
        add(tensor)
        gradient = gradient_of(tensor)
        if gradient is not None:
            add(gradient)
    return [Block(address, size_bytes) for address, size_bytes in blocks.items()]
