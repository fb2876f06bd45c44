"""Stage 3 of DeepSpeed: every parameter is cut into as many parts as ranks, each rounded up.

Parts of one rank lie behind each other in one flat tensor. Small parameters are gathered once and kept
whole beside their parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout
from memlens.sharding.zero import MASTER_BYTES, Zero

__all__ = ["partitioned_layout"]


def partitioned_layout(
    zero: Zero, parameters: Sequence[Parameter], groups: Sequence[Sequence[Parameter]], rank: int
) -> RankLayout:
    """Say what a rank holds."""
    host = zero.offload_optimizer
    trained = list(chain.from_iterable(groups))
    parts = [part for group in groups for part in _sub_groups(zero, group)]
    flat = _Flat(zero, rank)
    masters = tuple(
        flat.of(part, Category.MASTER_WEIGHT, MASTER_BYTES, f"master weights of part {index}", host)
        for index, part in enumerate(parts)
    )
    accumulated = flat.of(trained, Category.GRADIENT, zero.accumulation_bytes, "gradients", host)
    kept: tuple[Held, ...] = (accumulated,)
    if host:
        kept = (*kept, *(_as_gradient(each, host) for each in masters))
        in_step = (kept,) * len(masters)
    else:
        in_step = tuple(
            kept if _is_alias(zero, part) else (*kept, _as_gradient(master, host))
            for part, master in zip(parts, masters, strict=True)
        )
    return RankLayout(
        rank,
        weights=_weights(zero, flat, parameters, groups, trained),
        master_weights=masters,
        gradients_between_steps=kept,
        gradients_after_backward=kept,
        gradients_in_step=in_step,
        optimizer_tensors=masters,
        persistent=_persistent(zero, parameters),
        communication=_buffers(zero),
        transient=_transient(zero, parameters),
    )


class _Flat:
    """Lays the parts of parameters behind each other."""

    def __init__(self, zero: Zero, rank: int) -> None:
        self._zero = zero
        self._rank = rank

    def of(
        self,
        parameters: Iterable[Parameter],
        category: Category,
        element_bytes: int,
        name: str,
        on_host: bool,
    ) -> Held:
        pieces, end = [], 0
        for each in parameters:
            size = _part_elements(self._zero, each)
            start = self._rank * size
            count = min(size, each.elements - start)
            if count > 0:  # the last ranks of a small parameter hold only padding
                pieces.append(Piece(each.name, end, count, start))
            end += size
        return Held(name, category, end, element_bytes, tuple(pieces), on_host)


def _part_elements(zero: Zero, parameter: Parameter) -> int:
    return -(-parameter.elements // zero.world_size)


def _weights(
    zero: Zero,
    flat: _Flat,
    parameters: Sequence[Parameter],
    groups: Sequence[Sequence[Parameter]],
    trained: Sequence[Parameter],
) -> tuple[Held, ...]:
    host, size = zero.offload_parameters, zero.weight_bytes
    names = {each.name for each in trained}
    others = tuple(
        flat.of([each], Category.WEIGHT, size, each.name, host)
        for each in parameters
        if each.name not in names
    )
    if host:
        buffers = tuple(
            flat.of(group, Category.WEIGHT, size, f"weights of group {index}", host)
            for index, group in enumerate(groups)
        )
    else:
        buffers = (flat.of(trained, Category.WEIGHT, size, "weights", host),)
    return (*buffers, *others)


def _sub_groups(zero: Zero, group: Sequence[Parameter]) -> list[list[Parameter]]:
    """The optimizer updates so many elements at a time."""
    if zero.sub_group_size >= sum(_part_elements(zero, each) for each in group):
        return [list(group)]
    found: list[list[Parameter]] = []
    current: list[Parameter] = []
    filled = 0
    for each in group:
        current.append(each)
        filled += _part_elements(zero, each)
        if filled >= zero.sub_group_size:
            found.append(current)
            current, filled = [], 0
    return [*found, current] if current else found


def _as_gradient(master: Held, on_host: bool) -> Held:
    name = master.name.replace("master weights", "gradients")
    return Held(name, Category.GRADIENT, master.elements, MASTER_BYTES, master.pieces, on_host)


def _is_alias(zero: Zero, part: Sequence[Parameter]) -> bool:
    """Flattening one tensor makes no copy, and neither does a cast to its own dtype."""
    return len(part) == 1 and zero.accumulation_bytes == MASTER_BYTES


def _persistent(zero: Zero, parameters: Sequence[Parameter]) -> tuple[Held, ...]:
    if zero.world_size == 1:
        return ()  # the part is the parameter
    kept, total = [], 0
    for each in parameters:
        if total + each.elements > zero.model_persistence_threshold:
            continue
        if each.elements <= zero.parameter_persistence_threshold:
            kept.append(each)
            total += each.elements
    # Gathered together after a step, each with its padding.
    return tuple(
        Held(
            each.name,
            Category.WEIGHT,
            _part_elements(zero, each) * zero.world_size,
            zero.weight_bytes,
            (Piece(each.name, 0, each.elements),),
        )
        for each in kept
    )


def _buffers(zero: Zero) -> tuple[Held, ...]:
    """The bucket is made once and kept."""
    if not zero.contiguous_gradients:
        return ()
    size = zero.reduce_bucket_size
    return (Held("reduce bucket", Category.COMMUNICATION, size, zero.weight_bytes),)


def _transient(zero: Zero, parameters: Sequence[Parameter]) -> tuple[Held, ...]:
    """At most: parameters that are gathered at one moment, and a bucket flattened to be reduced.

    Parameters stay gathered up to `max_live_parameters`, the next are fetched ahead of use, and the one
    in use may be larger than both.
    """
    if zero.world_size == 1:
        return ()
    sizes = [_part_elements(zero, each) * zero.world_size for each in parameters]
    most = min(sum(sizes), zero.max_live_parameters + zero.prefetch_bucket_size + max(sizes))
    trained = [each.elements for each in parameters if each.trainable]
    bucket = max(min(zero.reduce_bucket_size, sum(trained)), max(trained, default=0))
    return (
        Held("gathered parameters", Category.WEIGHT, most, zero.weight_bytes),
        Held("flattened bucket", Category.COMMUNICATION, bucket, zero.weight_bytes),
    )
