"""What `memlens plan` prints of a job that cannot be simulated, but whose layout is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlens.report.plan.text import card_text
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.planning.by_layout import LayoutPlan

__all__ = ["layout_lines"]


def layout_lines(plan: LayoutPlan) -> list[str]:
    """The answer; the first line says what it is worth."""
    lines = []
    if plan.gpu is not None:
        short = plan.held_bytes - plan.gpu.usable_bytes
        verdict = (
            "whether it fits is not known"
            if plan.fits is None
            else f"does not fit, {format_bytes(short)} or more are missing"
        )
        lines.append(f"{card_text(plan.gpu)}: {verdict}")
    lines.append(f"  rank {plan.ranks.rank} of {plan.ranks.world_size}, {plan.mode.label}")
    for kind, size in plan.categories.items():
        if size:
            lines.append(f"  {kind.value.replace('_', ' '):<18} {format_bytes(size):>11}")
    lines.append(f"  {'at least':<18} {format_bytes(plan.held_bytes):>11}   without activations")
    lines += [
        "Worked out from the layout of shards alone, as the job could not be simulated:",
        f"  {plain(plan.reason)}",
    ]
    return lines
