"""Cuts blocks that several tensors share, so that each byte counts for the module that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes
from memlens.attribution.rules import Attribution

__all__ = ["Rows", "by_part"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Parallel arrays: blocks, or parts of blocks."""

    name: Array
    """Number of the tensor's name, or -1."""
    module: Array
    """Number of the module, or -1."""
    category: Array
    """Position in Category."""
    size_bytes: Array


def by_part(blocks: Lifetimes, found: Attribution, chosen: Array) -> Rows:
    """Chosen blocks (a mask), those that are shared cut into their parts and what is left."""
    parts = found.parts
    number = np.flatnonzero(chosen)
    size = blocks.size_bytes.copy()
    inner = parts.within(chosen)
    holder = parts.block[inner]
    np.subtract.at(size, holder, parts.size_bytes[inner])
    # Nothing may be left of a shared block; others are there even if they are empty.
    number = number[(size[number] > 0) | (blocks.size_bytes[number] == 0)]
    owner = np.where(parts.module[inner] >= 0, parts.module[inner], found.module[holder])
    return Rows(
        name=np.append(found.name[number], parts.name[inner]),
        module=np.append(found.module[number], owner),
        category=np.append(found.category[number], found.category[holder]),
        size_bytes=np.append(size[number], parts.size_bytes[inner]),
    )
