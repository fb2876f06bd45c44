"""One line now and then, for logs."""

from __future__ import annotations

from collections.abc import Sequence

from memlens.palette import label
from memlens.units import format_bytes
from memlens.watching.ranks import RankView

__all__ = ["status_line"]

_NAMED = 4
"""Categories that have a name in the line."""


def status_line(views: Sequence[RankView]) -> str | None:
    """What the last step that has ended took; None: none has."""
    ended = [view for view in views if view.state.step is not None]
    if not ended:
        return None
    highest = max(ended, key=lambda view: view.state.step.peak_bytes if view.state.step else 0)
    step = highest.state.step
    if step is None:
        return None
    held = sorted(step.categories.items(), key=lambda item: -item[1])
    parts = [f"{label(name)} {format_bytes(size)}" for name, size in held[:_NAMED] if size]
    rest = sum(size for _, size in held[_NAMED:])
    if rest:
        parts.append(f"other {format_bytes(rest)}")
    which = ""
    if len(ended) > 1:
        least = min(view.state.step.peak_bytes for view in ended if view.state.step)
        which = f" of rank {highest.rank}, {format_bytes(least)} at least of {len(ended)}"
    peak = max(ended, key=lambda view: view.peak_bytes).state.peak
    return (
        f"memlens: step {step.step}: peak {format_bytes(step.peak_bytes)}{which} "
        f"({', '.join(parts)}); highest so far {format_bytes(peak.allocated_bytes)} "
        f"in step {peak.step}"
    )
