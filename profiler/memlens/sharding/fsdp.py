"""FSDP2 (`fully_shard`): every parameter is cut along its first dimension.

Each call of `fully_shard` makes a group of parameters, which are gathered and whose gradients are
reduced together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from memlens.errors import UsageError
from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout, check_rank

__all__ = ["Fsdp", "FsdpGroup", "fsdp_layout"]


@dataclass(frozen=True)
class Fsdp:
    """How a model is sharded."""

    world_size: int
    gather_bytes: int | None = None
    """Size of a gathered element (`MixedPrecisionPolicy.param_dtype`); None: the parameter's own."""
    reduce_bytes: int | None = None
    """The same of gradients while they are reduced (`reduce_dtype`); None: that of the gathered."""
    offload: bool = False
    """`CPUOffloadPolicy`: parts, gradients and state are on the host."""


@dataclass(frozen=True)
class FsdpGroup:
    """What one `fully_shard` call gathers together, on any rank."""

    gathered: tuple[Held, ...]
    """Whole parameters, padded, one storage each."""
    all_gather: Held
    """The buffer they are gathered into, and copied out of."""
    reduce_scatter: Held
    """The buffer that gradients are copied into to be reduced."""


def fsdp_layout(
    fsdp: Fsdp, groups: Sequence[Sequence[Parameter]], rank: int
) -> tuple[RankLayout, tuple[FsdpGroup, ...]]:
    """Say what one rank holds, and what each group gathers.

    Args:
        fsdp: how.
        groups: parameters of each `fully_shard` call.
        rank: which.

    Raises:
        UsageError: FSDP2 cannot shard a scalar.
    """
    check_rank(rank, fsdp.world_size)
    every = [each for group in groups for each in group]
    for each in every:
        if not each.shape:
            raise UsageError(f"FSDP2 cannot shard a scalar, and {each.name} is one")
    parts = tuple(_part(fsdp, each, rank, Category.WEIGHT) for each in every)
    gradients = tuple(
        _gradients(fsdp, index, group, rank)
        for index, group in enumerate(groups)
        if any(each.trainable for each in group)
    )
    layout = RankLayout(
        rank,
        weights=parts,
        master_weights=(),
        gradients_between_steps=(),
        gradients_after_backward=gradients,
        gradients_in_step=(gradients,),
        # The optimizer sees the part without its padding.
        optimizer_tensors=tuple(
            _part(fsdp, each, rank, Category.WEIGHT, padded=False)
            for each in every
            if each.trainable
        ),
    )
    return layout, tuple(_group(fsdp, index, group) for index, group in enumerate(groups))


def _rows(fsdp: Fsdp, parameter: Parameter) -> int:
    """Of the first dimension, on each rank but the last ones, which are padded."""
    return -(-parameter.shape[0] // fsdp.world_size)


def _padded_elements(fsdp: Fsdp, parameter: Parameter) -> int:
    return _rows(fsdp, parameter) * prod(parameter.shape[1:])


def _piece(fsdp: Fsdp, parameter: Parameter, rank: int, start: int = 0) -> tuple[Piece, ...]:
    size = _padded_elements(fsdp, parameter)
    first = rank * size
    count = min(size, parameter.elements - first)
    return (Piece(parameter.name, start, count, first),) if count > 0 else ()


def _part(
    fsdp: Fsdp, parameter: Parameter, rank: int, category: Category, *, padded: bool = True
) -> Held:
    pieces = _piece(fsdp, parameter, rank)
    held = _padded_elements(fsdp, parameter) if padded else sum(each.count for each in pieces)
    return Held(parameter.name, category, held, parameter.element_bytes, pieces, fsdp.offload)


def _gradients(fsdp: Fsdp, index: int, group: Iterable[Parameter], rank: int) -> Held:
    """Gradients of a group come out of one reduction, and are parts of its result."""
    pieces: list[Piece] = []
    end = 0
    size = 0
    for each in group:
        if each.trainable:
            pieces += _piece(fsdp, each, rank, end)
            end += _padded_elements(fsdp, each)
            size = each.element_bytes
    name = f"gradients of group {index}"
    return Held(name, Category.GRADIENT, end, size, tuple(pieces), fsdp.offload)


def _group(fsdp: Fsdp, index: int, group: Sequence[Parameter]) -> FsdpGroup:
    def size(parameter: Parameter) -> int:
        return fsdp.gather_bytes or parameter.element_bytes

    def padded(parameters: Iterable[Parameter]) -> int:
        return sum(_padded_elements(fsdp, each) * fsdp.world_size for each in parameters)

    gathered = tuple(
        Held(
            each.name,
            Category.WEIGHT,
            padded([each]),
            size(each),
            (Piece(each.name, 0, each.elements),),
        )
        for each in group
    )
    trained = [each for each in group if each.trainable]
    widest = max((size(each) for each in group), default=0)
    reduced = fsdp.reduce_bytes or max((size(each) for each in trained), default=0)
    elements = padded(group) if fsdp.world_size > 1 else 0  # one rank copies its own part
    return FsdpGroup(
        gathered,
        Held(f"all-gather of group {index}", Category.COMMUNICATION, elements, widest),
        Held(f"reduce-scatter of group {index}", Category.COMMUNICATION, padded(trained), reduced),
    )
