"""FSDP1 (`FullyShardedDataParallel`): the parameters of each wrapped module are one flat tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout, check_rank, cut

__all__ = ["FlatFsdp", "FlatUnit", "flat_fsdp_layout"]

ALIGNMENT_BYTES = 16
"""With `use_orig_params`, each parameter begins at a multiple of this."""


@dataclass(frozen=True)
class FlatFsdp:
    """How a model is sharded."""

    world_size: int
    use_orig_params: bool = False
    gather_bytes: int | None = None
    """Size of a gathered element (`MixedPrecision.param_dtype`); None: the parameter's own."""
    offload: bool = False
    """`CPUOffload(offload_params=True)`."""


@dataclass(frozen=True)
class FlatUnit:
    """What one wrapped module gathers, on any rank."""

    elements: int
    """Of the flat tensor, padded to a multiple of the ranks."""
    gathered: Held


def flat_fsdp_layout(
    fsdp: FlatFsdp, units: Sequence[Sequence[Parameter]], rank: int
) -> tuple[RankLayout, tuple[FlatUnit, ...]]:
    """Say what one rank holds, and what each unit gathers.

    Args:
        fsdp: how; strategies that do not shard (`NO_SHARD`) are not modelled.
        units: parameters of each wrapped module that are not in an inner one.
        rank: which.
    """
    check_rank(rank, fsdp.world_size)
    parts, gradients, updated, found = [], [], [], []
    for index, unit in enumerate(units):
        if not unit:
            continue
        spans, elements = _spans(fsdp, unit)
        size = unit[0].element_bytes
        part = -(-elements // fsdp.world_size)
        pieces = cut(spans, rank * part, (rank + 1) * part)
        name = f"unit {index}"
        trained = any(each.trainable for each in unit)
        parts.append(Held(name, Category.WEIGHT, part, size, pieces, fsdp.offload))
        if trained:
            gradients.append(Held(name, Category.GRADIENT, part, size, pieces, fsdp.offload))
            updated += _updated(fsdp, unit, parts[-1])
        whole = part * fsdp.world_size
        gathered = Held(
            name,
            Category.WEIGHT,
            whole,
            fsdp.gather_bytes or size,
            tuple(Piece(each, start, count) for each, start, count in spans),
        )
        found.append(FlatUnit(whole, gathered))
    layout = RankLayout(
        rank,
        weights=tuple(parts),
        master_weights=(),
        gradients_between_steps=(),
        gradients_after_backward=tuple(gradients),
        gradients_in_step=(tuple(gradients),),
        optimizer_tensors=tuple(updated),
    )
    return layout, tuple(found)


def _spans(fsdp: FlatFsdp, unit: Sequence[Parameter]) -> tuple[list[tuple[str, int, int]], int]:
    """Where each parameter lies, and how many elements there are before the cut."""
    step = 1
    if fsdp.use_orig_params:
        step = ALIGNMENT_BYTES // (fsdp.gather_bytes or unit[0].element_bytes)
    spans: list[tuple[str, int, int]] = []
    end = 0
    for each in unit:
        start = -(-end // step) * step
        spans.append((each.name, start, each.elements))
        end = start + each.elements
    return spans, end


def _updated(fsdp: FlatFsdp, unit: Sequence[Parameter], part: Held) -> list[Held]:
    """What the optimizer sees: the flat part, or views of it that are the original parameters."""
    if not fsdp.use_orig_params:
        return [part]
    counts = dict.fromkeys((each.name for each in unit if each.trainable), 0)
    for piece in part.pieces:
        if piece.parameter in counts:
            counts[piece.parameter] = piece.count
    # Torch's optimizers make state for what has a gradient: parameters without elements here do not.
    return [
        Held(name, Category.WEIGHT, count, part.element_bytes, (Piece(name, 0, count),))
        for name, count in counts.items()
        if count
    ]
