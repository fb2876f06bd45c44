"""What a recorded job would have needed at least, had it less of some categories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.events import Category

if TYPE_CHECKING:
    from memlens.allocator.settings import AllocatorSettings
    from memlens.planning.changes import Change
    from memlens.rank import RankCapture

__all__ = ["Bounds"]

Array = npt.NDArray[Any]


class Bounds:
    """Of one rank.

    Args:
        rank: of a simulation, under the settings of its allocator.
    """

    def __init__(self, rank: RankCapture) -> None:
        self._rank = rank

    @cached_property
    def _held(self) -> dict[Category, Array]:
        return self._rank.timeline().categories

    @property
    def expandable(self) -> bool:
        """The allocator's segments can grow already."""
        return self._settings.expandable_segments

    @cached_property
    def _settings(self) -> AllocatorSettings:
        return self._rank.allocator_settings

    def least_bytes(self, changes: Iterable[Change]) -> int:
        """The highest sum of what changes leave, over all moments.

        Args:
            changes: each takes away a share of what it touches.
        """
        kept = dict.fromkeys(Category, 1.0)
        for change in changes:
            for category in change.touches:
                kept[category] *= 1 - change.share
        left: Array = np.zeros(0)
        for category, held in self._held.items():
            left = kept[category] * held + (left if left.size else 0)
        return int(left.max(initial=0))

    def with_expandable_segments(self, capacity_bytes: int) -> tuple[bool, int]:
        """Whether the same requests fit under this setting, and what they reserve given enough."""
        settings = replace(self._settings, expandable_segments=True)
        peak_bytes = self._rank.replayed(settings).totals.reserved_peak_bytes
        if peak_bytes <= capacity_bytes:
            return True, peak_bytes
        replayed = self._rank.replayed(settings, capacity_bytes)
        return replayed.out_of_memory is None, peak_bytes
