"""Blocks and modules that are alike, put together: a model is mostly the same layer many times.

Only what is equal in every respect but the number of the layer is put together, so a layer that
differs from the others, be it by one byte, has a row of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from memlens.analysis.alike import layers_of, pattern

if TYPE_CHECKING:
    from memlens.answers import Allocation, ModuleUsage

__all__ = ["Group", "alike_allocations", "alike_modules", "pattern"]

T = TypeVar("T")


@dataclass(frozen=True)
class Group(Generic[T]):
    """Members that are alike."""

    first: T
    """Stands for all of them."""
    count: int
    each_bytes: int
    layers: str = "*"
    """Which layers they are of: `0-6`, or `*`."""

    @property
    def total_bytes(self) -> int:
        """Of all members."""
        return self.count * self.each_bytes

    def name(self, text: str) -> str:
        """A name of the first member as one for the group: `layers.*.mlp` if there are several."""
        return pattern(text, self.layers) if self.count > 1 else text


def alike_modules(modules: Iterable[ModuleUsage]) -> list[Group[ModuleUsage]]:
    """Modules of one class that hold the same, the groups with the most bytes first.

    Where some layers hold one thing and others another (ZeRO's partitions), groups say which they are.
    """
    found: dict[object, list[ModuleUsage]] = {}
    for usage in modules:
        key = (pattern(usage.module), usage.class_name, tuple(sorted(usage.categories.items())))
        found.setdefault(key, []).append(usage)
    groups_of = Counter(pattern(members[0].module) for members in found.values())
    return _largest_first(
        Group(
            members[0],
            len(members),
            members[0].total_bytes,
            layers_of(each.module for each in members)
            if groups_of[pattern(members[0].module)] > 1
            else "*",
        )
        for members in found.values()
    )


def alike_allocations(blocks: Iterable[Allocation]) -> list[Group[Allocation]]:
    """Blocks of one size and purpose from one place, the groups with the most bytes first."""
    found: dict[object, list[Allocation]] = {}
    for block in blocks:
        key = (
            block.size_bytes,
            block.category,
            block.certainty,
            pattern(block.name),
            pattern(block.module),
            tuple(pattern(part.name) for part in block.parts),
            block.phase,
            block.step,
            block.preexisting,
            block.stack,
        )
        found.setdefault(key, []).append(block)
    return _largest_first(
        Group(members[0], len(members), members[0].size_bytes) for members in found.values()
    )


def _largest_first(groups: Iterable[Group[T]]) -> list[Group[T]]:
    return sorted(groups, key=lambda group: -group.total_bytes)
