"""Stages 1 and 2 of DeepSpeed: each group is one flat tensor, cut into as many partitions as ranks.

The flat tensor is padded so that it can be cut evenly and every partition begins at a multiple of four
bytes. Boundaries do not respect parameters: one that straddles a boundary belongs to both partitions,
and each of their ranks keeps its whole gradient until the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import gcd

from memlens.errors import UsageError
from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, RankLayout, cut, whole
from memlens.sharding.zero import MASTER_BYTES, Zero

__all__ = ["FlatGroup", "flat_layout"]

START_ALIGNMENT = 2
"""Partitions hold multiples of so many elements."""
PARAMETER_ALIGNMENT_BYTES = 16
"""With `parameter_alignment`, each parameter begins at a multiple of this."""


@dataclass(frozen=True)
class FlatGroup:
    """One group of the optimizer, flattened."""

    zero: Zero
    index: int
    parameters: tuple[Parameter, ...]
    """In the order in which they are flattened."""

    @cached_property
    def spans(self) -> tuple[tuple[str, int, int], ...]:
        """Where each parameter lies: name, first element, number of elements."""
        step = 1
        if self.zero.parameter_alignment and not self.zero.dedicated_bf16:
            size = self.zero.weight_bytes
            step = PARAMETER_ALIGNMENT_BYTES // gcd(PARAMETER_ALIGNMENT_BYTES, size)
        spans = []
        end = 0
        for each in self.parameters:
            start = -(-end // step) * step
            spans.append((each.name, start, each.elements))
            end = start + each.elements
        return tuple(spans)

    @cached_property
    def elements(self) -> int:
        """Of the flat tensor."""
        _, start, count = self.spans[-1]
        multiple = START_ALIGNMENT * self.zero.world_size
        return -(-(start + count) // multiple) * multiple

    @property
    def partition_elements(self) -> int:
        """Of each rank's part."""
        return self.elements // self.zero.world_size

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """Whose elements a rank's part holds."""
        size = self.partition_elements
        return cut(self.spans, rank * size, (rank + 1) * size)

    def flat(self, category: Category, element_bytes: int, name: str) -> Held:
        """All of it, on every rank."""
        return Held(
            f"{name} of group {self.index}",
            category,
            self.elements,
            element_bytes,
            cut(self.spans, 0, self.elements),
        )

    def part(
        self, rank: int, category: Category, element_bytes: int, name: str, *, on_host: bool = False
    ) -> Held:
        """A rank's part."""
        return Held(
            f"{name} of group {self.index}",
            category,
            self.partition_elements,
            element_bytes,
            self.pieces(rank),
            on_host,
        )


def flat_layout(
    zero: Zero, parameters: Sequence[Parameter], groups: Sequence[Sequence[Parameter]], rank: int
) -> RankLayout:
    """Say what a rank holds."""
    reorders = zero.round_robin_gradients and not zero.dedicated_bf16
    flat = tuple(
        FlatGroup(zero, index, _round_robin(group, zero.world_size) if reorders else tuple(group))
        for index, group in enumerate(groups)
    )
    offloaded = zero.offload_optimizer
    trained = {each.name for each in chain.from_iterable(groups)}
    untouched = [each for each in parameters if each.name not in trained]
    weights = (
        *(each.flat(Category.WEIGHT, zero.weight_bytes, "weights") for each in flat),
        *whole(untouched, Category.WEIGHT, zero.weight_bytes),
    )
    masters = tuple(
        each.part(rank, Category.MASTER_WEIGHT, MASTER_BYTES, "master weights", on_host=offloaded)
        for each in flat
    )
    if zero.dedicated_bf16:
        return _dedicated_bf16(zero, flat, weights, masters, rank)
    gradients = _Gradients(zero, flat, rank)
    return RankLayout(
        rank,
        weights=weights,
        master_weights=masters,
        gradients_between_steps=gradients.between_steps,
        gradients_after_backward=gradients.after_backward,
        gradients_in_step=gradients.in_step,
        optimizer_tensors=masters,
        communication=_buffers(zero, flat, rank),
        transient=_staging(zero, flat),
    )


def _dedicated_bf16(
    zero: Zero,
    flat: Sequence[FlatGroup],
    weights: tuple[Held, ...],
    masters: tuple[Held, ...],
    rank: int,
) -> RankLayout:
    """BF16_Optimizer: the state is sharded, fp32 gradients are whole on every rank and never freed."""
    kept = tuple(
        each.flat(Category.GRADIENT, zero.accumulation_bytes, "accumulated gradients")
        for each in flat
    )
    low = whole(
        chain.from_iterable(each.parameters for each in flat), Category.GRADIENT, zero.weight_bytes
    )
    return RankLayout(
        rank,
        weights=weights,
        master_weights=masters,
        gradients_between_steps=kept,
        gradients_after_backward=(*kept, *low),
        gradients_in_step=((*kept, *low),),
        optimizer_tensors=masters,
    )


class _Gradients:
    """Of stages 1 and 2, except where DeepSpeed takes its BF16_Optimizer."""

    def __init__(self, zero: Zero, groups: Sequence[FlatGroup], rank: int) -> None:
        if zero.accumulates_apart and zero.accumulation != "fp32":
            raise UsageError(f"gradients accumulated in {zero.accumulation} are not modelled")
        self._zero = zero
        self._groups = groups
        self._rank = rank

    @cached_property
    def _held(self) -> tuple[Held, ...]:
        """What ranks hold of whole gradients: those of each parameter that has a piece here."""
        zero, rank = self._zero, self._rank
        if zero.accumulates_apart:  # reduced straight into the partition
            return tuple(
                each.part(rank, Category.GRADIENT, zero.accumulation_bytes, "gradients")
                for each in self._groups
            )
        mine = [each for group in self._groups for each in _owned(group, rank)]
        if not zero.contiguous:
            return whole(mine, Category.GRADIENT, zero.weight_bytes)
        if not mine:
            return ()
        spans, end = [], 0
        for each in mine:
            spans.append(Piece(each.name, end, each.elements))
            end += each.elements
        # Backward fills it from its end, so that only the sizes of these pieces are right.
        name = "gradients of this rank's parameters"
        return (Held(name, Category.GRADIENT, end, zero.weight_bytes, tuple(spans)),)

    @cached_property
    def _left_over(self) -> tuple[Held, ...]:
        """Stage 1 keeps accumulated gradients that are other ranks' until the next step.

        Most lie in the reduce bucket; one that is larger than it has memory of its own.
        """
        zero = self._zero
        if not zero.accumulates_apart or zero.stage > 1:
            return ()
        mine = {each.name for group in self._groups for each in _owned(group, self._rank)}
        others = [
            each
            for each in chain.from_iterable(group.parameters for group in self._groups)
            if each.name not in mine and each.elements > zero.reduce_bucket_size
        ]
        return whole(others, Category.GRADIENT, zero.accumulation_bytes)

    def _padding(self, group: FlatGroup) -> tuple[Held, ...]:
        """Zeros that are put between and behind the gradients of a partition."""
        if self._zero.accumulates_apart:
            return ()
        held = sum(piece.count for piece in group.pieces(self._rank))
        missing = group.partition_elements - held
        if not missing:
            return ()
        name = f"padding of group {group.index}"
        return (Held(name, Category.GRADIENT, missing, self._zero.weight_bytes),)

    def _on_host(self) -> tuple[Held, ...]:
        return tuple(
            each.part(self._rank, Category.GRADIENT, MASTER_BYTES, "gradients", on_host=True)
            for each in self._groups
        )

    @cached_property
    def between_steps(self) -> tuple[Held, ...]:
        zero = self._zero
        if not zero.offload_optimizer:
            return ()
        largest = max(each.elements for group in self._groups for each in group.parameters)
        size = zero.weight_bytes
        accumulated: tuple[Held, ...] = ()
        if zero.gradient_accumulation_steps > 1 and not zero.accumulates_apart:
            mine = [each for group in self._groups for each in _owned(group, self._rank)]
            accumulated = whole(mine, Category.GRADIENT, size, on_host=True)
        return (
            *self._on_host(),
            Held("staged gradient", Category.GRADIENT, largest, size, on_host=True),
            Held("staged gradient", Category.GRADIENT, largest, size),
            *accumulated,
        )

    @cached_property
    def after_backward(self) -> tuple[Held, ...]:
        zero = self._zero
        if not zero.offload_optimizer:
            padding = (self._padding(group) for group in self._groups)
            return (*self._held, *chain.from_iterable(padding), *self._left_over)
        kept = self._held if zero.accumulates_apart else ()
        return (*self.between_steps, *kept, *self._left_over)

    @cached_property
    def in_step(self) -> tuple[tuple[Held, ...], ...]:
        """One group after the other: its part in fp32, and what later groups still need."""
        zero = self._zero
        if zero.offload_optimizer:
            kept = self._held if zero.accumulates_apart else ()
            always = (*self.between_steps, *self._left_over)
            return tuple((*always, *kept[at:]) for at in range(len(self._groups)))
        moments: list[tuple[Held, ...]] = []
        for index, group in enumerate(self._groups):
            later = self._groups[index + 1 :]
            if zero.accumulates_apart:
                moments.append(self._held[index:])
                continue
            part = group.part(self._rank, Category.GRADIENT, MASTER_BYTES, "gradients")
            waiting = (self._padding(each) for each in later)
            if zero.contiguous:
                shared = self._held if later or self._is_alias(group) else ()
            else:
                names = {each.name for other in later for each in _owned(other, self._rank)}
                shared = tuple(each for each in self._held if each.name in names)
                if self._is_alias(group):
                    names = {each.name for each in _owned(group, self._rank)}
                    shared += tuple(each for each in self._held if each.name in names)
            own = () if self._is_alias(group) else (part,)
            moments.append((*shared, *own, *chain.from_iterable(waiting)))
        return tuple(moments)

    def _is_alias(self, group: FlatGroup) -> bool:
        """Flattening one tensor makes no copy, and neither does a cast to its own dtype."""
        alone = len(group.pieces(self._rank)) == 1 and not self._padding(group)
        return alone and self._zero.weight_bytes == MASTER_BYTES


def _owned(group: FlatGroup, rank: int) -> list[Parameter]:
    names = {piece.parameter for piece in group.pieces(rank)}
    return [each for each in group.parameters if each.name in names]


def _buffers(zero: Zero, groups: Sequence[FlatGroup], rank: int) -> tuple[Held, ...]:
    """Buckets, which exist from the first gradient of a backward to its end, and what offload stages."""
    buckets = 0
    if zero.contiguous:
        buckets = 2 if zero.overlaps else 1
    bucket = Held(
        "reduce bucket", Category.COMMUNICATION, zero.reduce_bucket_size, zero.weight_bytes
    )
    staged = tuple(
        each.part(rank, Category.COMMUNICATION, zero.weight_bytes, "updated weights", on_host=True)
        for each in groups
        if zero.offload_optimizer
    )
    return (*(bucket,) * buckets, *staged)


def _staging(zero: Zero, groups: Sequence[FlatGroup]) -> tuple[Held, ...]:
    """A bucket whose gradients belong to several ranks is flattened once more to be reduced."""
    if zero.world_size == 1:
        return ()
    sizes = [each.elements for group in groups for each in group.parameters]
    most = max(min(zero.reduce_bucket_size, sum(sizes)), max(sizes))
    return (Held("flattened bucket", Category.COMMUNICATION, most, zero.weight_bytes),)


def _round_robin(group: Sequence[Parameter], world_size: int) -> tuple[Parameter, ...]:
    """Neighbours go to different ranks: first every n-th, then those behind them."""
    return tuple(each for first in range(world_size) for each in group[first::world_size])
