"""What `memlens plan` prints before the report: whether it fits, and where it would run out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlens.analysis.frames import job_frame
from memlens.catalogue.gpus import CONTEXT_BYTES
from memlens.events import Category
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.catalogue.gpus import Gpu
    from memlens.planning.plan import Plan
    from memlens.planning.verdict import Shortage, Verdict

__all__ = ["card_text", "plan_lines", "shortage_lines", "verdict_text"]

_MOST = 4
"""Categories named of what was alive."""
_NAMED = {
    Category.WEIGHT: "the weight {}",
    Category.MASTER_WEIGHT: "the master weight of {}",
    Category.OPTIMIZER_STATE: "the optimizer's {}",
    Category.GRADIENT: "the gradient of {}",
    Category.ACTIVATION: "the activation {}",
    Category.INPUT: "the batch's {}",
    Category.COMMUNICATION: "the communication buffer {}",
    Category.WORKSPACE: "the workspace {}",
}
"""What to call an allocation that has a name."""
_UNNAMED = {
    Category.WEIGHT: "a weight",
    Category.MASTER_WEIGHT: "a master weight",
    Category.OPTIMIZER_STATE: "the optimizer's state",
    Category.GRADIENT: "a gradient",
    Category.ACTIVATION: "an activation",
    Category.INPUT: "a batch",
    Category.COMMUNICATION: "a communication buffer",
    Category.OPTIMIZER_TEMPORARY: "a temporary of the optimizer's step",
    Category.TEMPORARY: "a temporary",
    Category.WORKSPACE: "a library's workspace",
    Category.UNKNOWN: "something that no rule explains",
}


def plan_lines(plan: Plan) -> list[str]:
    """The answer in a few lines; the first one is the verdict."""
    lines = [_headline(plan)]
    if plan.ranks is not None:
        under = "" if plan.mode is None else f", {plan.mode.label}"
        lines.append(f"  rank {plan.ranks.rank} of {plan.ranks.world_size}{under}")
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
        lines += shortage_lines(plan.verdict.shortage)
    if plan.result.notes:
        lines += ["Not as in the real job:", *(f"  {plain(note)}" for note in plan.result.notes)]
    return lines


def _headline(plan: Plan) -> str:
    verdict = plan.verdict
    if verdict is None:
        cards = ", ".join(gpu.name for gpu in plan.smallest_cards()) or "no card of the table"
        return f"Smallest cards that hold it: {cards}"
    return f"{card_text(verdict.gpu)}: {verdict_text(verdict)}"


def card_text(gpu: Gpu) -> str:
    """`RTX 4090, 22.99 GiB usable`."""
    return f"{plain(gpu.name)}, {format_bytes(gpu.usable_bytes)} usable"


def verdict_text(verdict: Verdict) -> str:
    """Whether it fits, and by how much."""
    if verdict.shortage is not None:
        return f"does not fit, {format_bytes(-verdict.headroom_bytes)} are missing"
    if verdict.retries:
        return "fits, but only just: the allocator has to give back what it has cached, which costs time"
    return f"fits, {format_bytes(verdict.headroom_bytes)} to spare"


def shortage_lines(short: Shortage) -> list[str]:
    """When it runs out, what was to be allocated, what there was, and which line of the job that is."""
    where = f"step {short.step}, {short.phase.value}"
    if short.module:
        where += f", in {short.module}"
    lines = [
        f"It runs out in {plain(where)}: {format_bytes(short.requested_bytes)} for {_wanted(short)}"
    ]
    alive = sorted(short.categories.items(), key=lambda pair: -pair[1])
    parts = [f"{format_bytes(size)} {kind.value.replace('_', ' ')}" for kind, size in alive if size]
    lines.append(
        f"  {format_bytes(short.allocated_bytes)} were allocated ({', '.join(parts[:_MOST])}), "
        f"{format_bytes(short.reserved_bytes)} reserved"
    )
    if (frame := job_frame(short.stack)) is not None:
        lines.append(f"  at {plain(frame.file)}:{frame.line} in {plain(frame.function)}")
    return lines


def _wanted(short: Shortage) -> str:
    if short.name and short.category in _NAMED:
        return _NAMED[short.category].format(plain(short.name))
    return _UNNAMED[short.category] + (f" ({plain(short.name)})" if short.name else "")
