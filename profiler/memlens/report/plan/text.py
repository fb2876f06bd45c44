"""What `memlens plan` prints before the report: whether it fits, and where it would run out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlens.catalogue.gpus import CONTEXT_BYTES
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.planning.plan import Plan
    from memlens.planning.verdict import Shortage, Verdict

__all__ = ["plan_lines"]

_MOST = 4
"""Categories named of what was alive."""


def plan_lines(plan: Plan) -> list[str]:
    """The answer in a few lines; the first one is the verdict."""
    lines = [_headline(plan)]
    rows = (
        ("allocated at most", plan.allocated_peak_bytes, ""),
        (
            "reserved at most",
            plan.reserved_peak_bytes,
            f"{format_bytes(plan.fragmentation_bytes)} of it is in no block at the peak",
        ),
        (
            "device in use",
            plan.device_bytes,
            f"{format_bytes(CONTEXT_BYTES)} for driver, CUDA context and libraries, a constant",
        ),
    )
    for title, size, note in rows:
        lines.append(f"  {title:<18} {format_bytes(size):>11}" + (f"   {note}" if note else ""))
    if plan.verdict is not None and plan.verdict.shortage is not None:
        lines += _shortage_lines(plan.verdict.shortage)
    if plan.result.notes:
        lines += ["Not as in the real job:", *(f"  {plain(note)}" for note in plan.result.notes)]
    return lines


def _headline(plan: Plan) -> str:
    verdict = plan.verdict
    if verdict is None:
        cards = ", ".join(gpu.name for gpu in plan.smallest_cards()) or "no card of the table"
        return f"Smallest cards that hold it: {cards}"
    return f"{_card(verdict)}: {_says(verdict)}"


def _card(verdict: Verdict) -> str:
    return f"{plain(verdict.gpu.name)}, {format_bytes(verdict.gpu.usable_bytes)} usable"


def _says(verdict: Verdict) -> str:
    if verdict.shortage is not None:
        return f"does not fit, {format_bytes(-verdict.headroom_bytes)} are missing"
    if verdict.retries:
        return "fits, but only just: the allocator has to give back what it has cached, which costs time"
    return f"fits, {format_bytes(verdict.headroom_bytes)} to spare"


def _shortage_lines(short: Shortage) -> list[str]:
    what = short.name or short.category.value.replace("_", " ")
    where = f"step {short.step}, {short.phase.value}"
    if short.module:
        where += f", in {short.module}"
    lines = [
        f"It runs out in {plain(where)}: {format_bytes(short.requested_bytes)} for {plain(what)}"
    ]
    alive = sorted(short.categories.items(), key=lambda pair: -pair[1])
    parts = [f"{format_bytes(size)} {kind.value.replace('_', ' ')}" for kind, size in alive if size]
    lines.append(
        f"  {format_bytes(short.allocated_bytes)} were allocated ({', '.join(parts[:_MOST])}), "
        f"{format_bytes(short.reserved_bytes)} reserved"
    )
    if short.stack:
        frame = short.stack[-1]
        lines.append(f"  at {plain(frame.file)}:{frame.line} in {plain(frame.function)}")
    return lines
