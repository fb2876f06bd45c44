"""Finds the workspaces that libraries make for themselves: no tensor of Python's holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import FOREVER, Lifetimes
from memlens.attribution.segments import Scope, Segments

__all__ = ["Workspaces", "find_workspaces"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Workspaces:
    """Sizes that libraries ask for when they make a workspace."""

    sizes: Sequence[int] = ()
    """Of cuBLAS."""
    lt_bytes: int = 0
    """Of cuBLASLt; 0: there is none. Many tensors have its size."""

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Workspaces:
        """As a capture's header has them."""
        return cls(header.get("workspaces") or (), header.get("lt_workspace_bytes") or 0)


def find_workspaces(
    blocks: Lifetimes, segments: Segments, where: Array, known: Workspaces
) -> Array:
    """Blocks that only a library can hold, as a mask; a tag, where there is one, wins.

    Args:
        blocks: one row per block.
        segments: what the job did when.
        where: segment in which each block was allocated.
        known: sizes.
    """
    fits: Array = np.isin(blocks.requested_bytes, list(known.sizes))
    if np.any(fits):
        # Kept beyond the step.
        freed_in = segments.step[segments.at(blocks.free_ns)]
        fits &= (segments.scope[where] != Scope.NONE) | blocks.preexisting
        fits &= (blocks.free_ns == FOREVER) | (freed_in > segments.step[where])
    if known.lt_bytes:
        fits[_first_lt(blocks, segments, where, known.lt_bytes)] = True
    return fits


def _first_lt(blocks: Lifetimes, segments: Segments, where: Array, size_bytes: int) -> list[int]:
    """The first of its size that is never freed: of the job's thread, and of the engine's."""
    kept = (blocks.requested_bytes == size_bytes) & (blocks.free_ns == FOREVER)
    # What the last step has made may just not be freed yet.
    kept &= ~blocks.preexisting & (segments.step[where] < segments.step[-1])
    found = []
    for thread in ((Scope.MODULE, Scope.LOSS), (Scope.RECOMPUTE, Scope.BACKWARD)):
        rows = np.flatnonzero(kept & np.isin(segments.scope[where], thread))
        found += rows[:1].tolist()
    return found
