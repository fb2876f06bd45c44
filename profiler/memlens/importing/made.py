"""What conclusions are drawn of: a block, with what the snapshot says of it."""

from __future__ import annotations

from dataclasses import dataclass

from memlens.events import Category
from memlens.importing.evidence import Evidence
from memlens.importing.stacks import Frame

__all__ = ["Made"]


@dataclass
class Made:
    """One block."""

    alloc_ns: int
    free_ns: int
    requested_bytes: int
    evidence: Evidence
    is_early: bool
    """It was there before the history began."""
    frames: tuple[Frame, ...] = ()
    """Who asked for it, innermost first."""
    freed_by: Evidence | None = None
    """Who gave it back; None: nobody did, or no stack tells."""
    category: Category = Category.UNKNOWN
