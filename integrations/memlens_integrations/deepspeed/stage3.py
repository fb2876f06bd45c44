"""What DeepSpeed holds in stage 3: every parameter is partitioned by itself, and gathered to be used.

A parameter's partition has `ceil(elements / ranks)` elements; those of the last ranks may be padding. The
partitions of a rank lie one behind the other in flat tensors, and so do its master weights and gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from memlens.adapters import Holding, Piece
from memlens.events import Category
from memlens_integrations.deepspeed.flat import buckets, norms, rank_in, tensors_of
from memlens_integrations.deepspeed.private import Private

__all__ = [
    "address_of",
    "gathered",
    "holdings_of_gather",
    "holdings_of_module",
    "holdings_of_stage_3",
    "is_alone",
]

Tensor = torch.Tensor


def holdings_of_stage_3(private: Private, optimizer: Any) -> Iterator[Holding]:
    """Of `DeepSpeedZeroOptimizer_Stage3`: what is there beside the weights themselves."""

    def read(name: str) -> Any:
        return private.read("stage 3", optimizer, name)

    groups = read("fp16_groups") or ()
    flat = list(tensors_of(read("lp_param_buffer")))
    for tensor in flat:
        yield Holding(tensor, Category.WEIGHT, "partitioned weights")
    for number, (tensor, group) in enumerate(
        zip(read("fp16_partitioned_groups_flat") or (), groups, strict=False)
    ):
        if tensor is not None:  # on disk
            text = f"partitioned weights of group {number}"
            pieces = _pieces(private, group) if private.is_new(tensor) else ()
            yield Holding(tensor, Category.WEIGHT, text, pieces=pieces)
            flat.append(tensor)
    held = {address_of(tensor) for tensor in flat}
    for number, (master, group) in enumerate(
        zip(read("fp32_partitioned_groups_flat") or (), groups, strict=False)
    ):
        if address_of(master) not in held:  # weights that are updated in place have none
            text = f"master partition of group {number}"
            pieces = _pieces(private, group) if private.is_new(master) else ()
            yield Holding(master, Category.MASTER_WEIGHT, text, pieces=pieces)
    gradients = read("grad_partitions_flat_buffer")
    if gradients is not None:
        every = chain.from_iterable(groups)
        pieces = _pieces(private, every) if private.is_new(gradients) else ()
        yield Holding(gradients, Category.GRADIENT, "gradient partitions", pieces=pieces)
    yield from buckets(read("ipg_buckets"))
    for tensor in tensors_of(read("_muon_allgather_buffers")):
        yield Holding(tensor, Category.COMMUNICATION, "all-gather buffer of Muon")
    yield from norms(read("_global_grad_norm"), read("norm_for_param_grads"))


def holdings_of_module(private: Private, module: torch.nn.Module) -> Iterator[Holding]:
    """Of a partitioned model: partitions in memory of their own, and whole parameters."""
    parameters = list(module.parameters())
    for parameter in parameters:
        partition = private.read("parameter", parameter, "ds_tensor")
        # Those of trainable parameters lie in flat tensors.
        if partition is not None and is_alone(partition):
            pieces = _pieces(private, [parameter]) if private.is_new(partition) else ()
            yield Holding(partition, Category.WEIGHT, "partition of", parameter, pieces)
        secondary = private.read("parameter", parameter, "ds_secondary_tensor")
        if secondary is not None:
            yield Holding(secondary, Category.WEIGHT, "secondary partition of", parameter)
    yield from gathered(private, parameters)


def gathered(private: Private, parameters: Iterable[Tensor]) -> Iterator[Holding]:
    """Whole parameters: weights if they stay, else communication memory.

    Also of those that are not gathered at the moment: of which category they will be.
    """
    for parameter in parameters:
        is_gathered = parameter.numel() > 0
        if not is_gathered and not private.is_new(parameter):
            continue
        if private.read("parameter", parameter, "ds_tensor") is None:
            continue
        stays = private.read("parameter", parameter, "ds_persist")
        if is_gathered and not stays:
            yield Holding(
                parameter.data, Category.COMMUNICATION, "all-gathered", parameter=parameter
            )
        yield Holding(parameter, Category.WEIGHT if stays else Category.COMMUNICATION)


def holdings_of_gather(private: Private, handle: Any) -> Iterator[Holding]:
    """The buffer in which several parameters are gathered: each rank's partitions of all of them."""
    partitions = private.read("gather", handle, "partitions")
    parameters = private.read("gather", handle, "params") or ()
    if not partitions:
        return
    pieces: list[Piece] = []
    start = 0
    for rank, each in enumerate(partitions):
        pieces += _pieces(private, parameters, rank=rank, start=start)
        start += each.numel()
    first = partitions[0]
    buffer = first.as_strided((start,), (1,), first.storage_offset())
    yield Holding(buffer, Category.COMMUNICATION, "all-gather buffer", pieces=tuple(pieces))


def address_of(tensor: Tensor) -> int:
    """Where a tensor's storage begins."""
    return tensor.untyped_storage().data_ptr()


def is_alone(tensor: Tensor) -> bool:
    """Whether a tensor is all there is in its storage."""
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _pieces(
    private: Private,
    parameters: Iterable[Tensor],
    *,
    rank: int | None = None,
    start: int = 0,
) -> tuple[Piece, ...]:
    """Whose elements are in a flat tensor of one rank's partitions of parameters; of this rank's."""
    found = []
    for parameter in parameters:
        partition = private.read("parameter", parameter, "ds_tensor")
        elements = private.read("parameter", parameter, "ds_numel")
        if partition is None or elements is None:
            return ()
        size = int(private.read("parameter", partition, "ds_numel") or partition.numel())
        group = private.read("parameter", parameter, "ds_process_group")
        first = (rank_in(group) if rank is None else rank) * size
        count = min(size, elements - first)
        if count > 0:
            found.append(Piece(parameter, start, count, first, elements))
        start += size
    return tuple(found)
