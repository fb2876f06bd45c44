"""Explains requests for memory that failed: where, why, and what would have let them through."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from memlens.analysis.fit import Fit, Obstacle, fit_of
from memlens.analysis.remedies import Circumstances, Remedy, remedies_for, two_together
from memlens.answers import OutOfMemory
from memlens.events import Category, Phase
from memlens.report.text import count, frame_text, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = ["Explanation", "explain", "explanation_lines", "oom_payload"]

MOST_REMEDIES = 5


@dataclass(frozen=True)
class Explanation:
    """One failed request."""

    event: OutOfMemory
    phase: Phase
    module: str
    fit: Fit | None
    """None: it was another rank's."""
    categories: dict[Category, int]
    """What was alive; sums to what was allocated."""
    remedies: tuple[Remedy, ...]
    together: tuple[Remedy, Remedy] | None
    """Two that suffice together, where none does alone."""


def explain(rank: RankCapture, world_size: int) -> tuple[Explanation, ...]:
    """Explain every failed request of a rank's device, the first one first."""
    return tuple(_explain(rank, event, world_size) for event in rank.out_of_memory)


def _explain(rank: RankCapture, event: OutOfMemory, world_size: int) -> Explanation:
    place = rank.place_at(event.time_ns)
    categories = rank.categories_at(event.time_ns)
    fit = fit_of(event)
    remedies: tuple[Remedy, ...] = ()
    together = None
    if fit is not None:
        largest = dict.fromkeys(Category, 0)
        for block in rank.allocations_at(event.time_ns, top=None):
            largest[block.category] = max(largest[block.category], block.size_bytes)
        case = Circumstances(
            event=event,
            fit=fit,
            phase=place.phase,
            categories=categories,
            modules=rank.modules_at(event.time_ns, top=None),
            largest=largest,
            world_size=world_size,
        )
        remedies = remedies_for(case)
        together = two_together(case, remedies)
    return Explanation(event, place.phase, place.module, fit, categories, remedies, together)


def explanation_lines(found: Explanation) -> list[str]:
    """The explanation in sentences, for a terminal."""
    event = found.event
    where = f"step {event.step}, {found.phase.value}"
    if found.module:
        where += f", in {plain(found.module)}"
    lines = []
    if event.requested_bytes is None or found.fit is None:
        peer = "another rank" if event.peer_rank is None else f"rank {event.peer_rank}"
        lines.append(f"{peer} ran out of memory; this rank was then in {where}")
    else:
        lines.append(f"{where}: {format_bytes(event.requested_bytes)} more were asked for")
        if event.stack:
            lines.append(f"  by {frame_text(event.stack[-1])}")
    lines.append(
        f"{plain(event.device)} has {format_bytes(event.device_total_bytes)}: "
        f"{format_bytes(event.allocated_bytes)} allocated, "
        f"{format_bytes(event.reserved_bytes - event.allocated_bytes)} reserved beyond that, "
        f"{format_bytes(event.device_free_bytes)} free"
        + (f", {format_bytes(found.fit.outside_bytes)} outside of PyTorch" if found.fit else "")
    )
    if found.fit is not None:
        lines.append(_verdict(event, found.fit))
    held = sorted(found.categories.items(), key=lambda item: -item[1])
    alive = ", ".join(
        f"{category.value.replace('_', ' ')} {format_bytes(size)}"
        for category, size in held
        if size
    )
    lines.append(f"alive: {alive or 'nothing that was recorded'}")
    if found.fit is not None:
        lines += _remedy_lines(found)
    return lines


def oom_payload(found: Explanation, categories: dict[str, int]) -> dict[str, Any]:
    """The explanation as plain values.

    Args:
        found: of one request.
        categories: what was alive, by the names that the reader asked for.
    """
    fit = found.fit
    return {
        **asdict(found.event),
        "phase": found.phase.value,
        "module": found.module,
        "obstacle": fit.obstacle.value if fit else None,
        "missing_bytes": fit.missing_bytes if fit else None,
        "short_bytes": fit.short_bytes if fit else None,
        "outside_bytes": fit.outside_bytes if fit else None,
        "categories": categories,
        "remedies": [asdict(remedy) for remedy in found.remedies],
    }


def _verdict(event: OutOfMemory, fit: Fit) -> str:
    pieces = "nothing lies free in the cache"
    if event.free_pieces:
        pieces = (
            f"{format_bytes(event.free_pieces_bytes)} lie free in the cache, in "
            f"{count(len(event.free_pieces), 'piece')}, the largest of "
            f"{format_bytes(event.largest_free_bytes)}"
        )
    if fit.obstacle is Obstacle.FRAGMENTATION:
        return f"It would have fitted but for fragmentation: {pieces}."
    if fit.obstacle is Obstacle.STREAMS:
        return (
            "It would have fitted but for other streams, which still use "
            f"{format_bytes(event.pending_bytes)} that were given back."
        )
    if fit.obstacle is Obstacle.LIMIT:
        return (
            "It would have fitted but for the limit of this process, "
            f"{format_bytes(event.limit_bytes or 0)}."
        )
    return f"{format_bytes(fit.short_bytes)} short, even if all were in one piece; {pieces}."


def _remedy_lines(found: Explanation) -> list[str]:
    if not found.remedies:
        return ["No change that memlens knows of would have freed much."]
    lines = []
    enough = [remedy for remedy in found.remedies if remedy.suffices]
    if enough:
        lines.append("Each of these alone would have let it through, the cheapest first:")
    elif found.together is not None:
        one, other = found.together
        lines.append(f"No change alone suffices; these two do: {one.change}, and {other.change}:")
    else:
        lines.append("No two of these changes suffice:")
    for remedy in (enough or list(found.remedies))[:MOST_REMEDIES]:
        lines.append(f"- {remedy.change}: frees {format_bytes(remedy.frees_bytes)}")
        lines.append(f"    {remedy.reason}; cost: {remedy.cost}")
    return lines
