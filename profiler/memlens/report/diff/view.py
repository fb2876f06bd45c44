"""What a diff of two runs says, asked of them once and shown by every renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlens.analysis.diff import Diff, diff
from memlens.report.all_ranks import view_ranks
from memlens.report.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlens.capture import Capture, RankCapture
    from memlens.report.view import ReportOptions

__all__ = ["DiffView", "Side", "view_diff"]


@dataclass(frozen=True)
class Side:
    """One of the two runs, and the rank of it that is compared."""

    letter: str
    """"A" or "B"."""
    capture: Capture
    rank: RankCapture


@dataclass(frozen=True)
class DiffView:
    """Two runs and what differs between them."""

    a: Side
    b: Side
    diff: Diff
    warnings: tuple[str, ...]
    """What a reader must know before trusting the differences, one sentence each."""


def view_diff(a: Capture, b: Capture, options: ReportOptions) -> DiffView:
    """Compare a rank of each run: the one asked for, or else the one with the highest peak.

    Raises:
        UsageError: one of the runs has no such rank, or did not record the step asked for.
    """
    a_ranks, b_ranks = view_ranks(a, options.rank), view_ranks(b, options.rank)
    a_side, b_side = Side("A", a, a_ranks.highest), Side("B", b, b_ranks.highest)
    found = diff(a_side.rank, b_side.rank, step=options.step)
    warnings = [
        *_not_comparable(a_side, b_side, found),
        *(f"A: {sentence}" for sentence in a_ranks.warnings),
        *(f"B: {sentence}" for sentence in b_ranks.warnings),
    ]
    return DiffView(a_side, b_side, found, tuple(warnings))


def _not_comparable(a: Side, b: Side, found: Diff) -> list[str]:
    """Why the two runs may differ in more than what their jobs need."""
    warnings = [f"{side.letter} holds no allocation" for side in (a, b) if side.rank.events == 0]
    a_info, b_info = a.capture.info, b.capture.info
    if a_info.source != b_info.source:
        warnings.append(
            f"A was recorded from {a_info.source} and B from {b_info.source}: "
            "allocators round and keep memory in ways of their own"
        )
    if a_info.format_version != b_info.format_version:
        warnings.append(
            f"A is a capture of format {a_info.format_version}, B of {b_info.format_version}: "
            "they may not hold the same"
        )
    if a_info.world_size != b_info.world_size:
        warnings.append(
            f"A ran on {count(a_info.world_size, 'rank')}, B on {b_info.world_size}: "
            "what is shared out among ranks is cut differently"
        )
    a_steps = [each.step for each in found.steps if each.a_bytes is not None]
    b_steps = [each.step for each in found.steps if each.b_bytes is not None]
    if a_steps != b_steps:
        warnings.append(
            f"A recorded {_steps(a_steps)}, B {_steps(b_steps)}: "
            "the peaks may be of steps that only one of them has"
        )
    return warnings


def _steps(numbers: Sequence[int]) -> str:
    """`steps 0 to 4`, or `3 steps from 0 to 9` when some are missing between."""
    if not numbers:
        return "no complete step"
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"step {first}"
    if last - first + 1 == len(numbers):
        return f"steps {first} to {last}"
    return f"{count(len(numbers), 'step')} from {first} to {last}"
