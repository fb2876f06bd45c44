"""What is there already: a walk over the objects of the process, once, when recording begins."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from memlens.observers.modules import ModuleObserver
from memlens.observers.optimizers import OptimizerObserver
from memlens.observers.storages import live_tensors

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


def existing_blocks(
    device_type: str, watch: Callable[[torch.UntypedStorage], None]
) -> list[tuple[int, int]]:
    """Find the storages that Python objects hold.

    Memory that the allocator did not hand out (shared, mapped, borrowed from NumPy) is left out:
    such storages can not be resized.

    Args:
        device_type: of the tensors to look at.
        watch: called with each storage found, to learn of its free.

    Returns:
        (address, bytes) of each block, once.
    """
    blocks: dict[int, int] = {}
    for tensor in live_tensors(gc.get_objects(), device_type):
        try:
            storage = tensor.untyped_storage()
            address, size_bytes = storage.data_ptr(), storage.nbytes()
        except (RuntimeError, NotImplementedError):  # sparse, fake, uninitialised
            continue
        if not address or not size_bytes or address in blocks:
            continue
        if storage.is_shared() or not storage.resizable():
            continue
        blocks[address] = size_bytes
        watch(storage)
    return list(blocks.items())
