"""Explains requests for memory that failed: where, why, and what would have let them through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from memlens.analysis.circumstances import Circumstances
from memlens.analysis.fit import Fit, fit_of
from memlens.analysis.remedies import Remedy, remedies_for, two_together
from memlens.answers import Allocation, ModuleUsage, OutOfMemory, Place
from memlens.events import Category, Phase

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = [
    "Explanation",
    "Failure",
    "explain",
    "explain_event",
    "failures_of",
    "oom_payload",
]


FEW_RANKS = 8
"""Of so many, the streams stay in memory: they are asked more."""


@dataclass(frozen=True)
class Explanation:
    """One failed request."""

    rank: int
    event: OutOfMemory
    phase: Phase
    module: str
    fit: Fit | None
    """None: it was another rank's."""
    categories: dict[Category, int]
    """What was alive; sums to what was allocated."""
    modules: tuple[ModuleUsage, ...]
    """What held it, the module that held most first."""
    allocations: tuple[Allocation, ...]
    """The same as blocks, the largest first."""
    remedies: tuple[Remedy, ...]
    together: tuple[Remedy, Remedy] | None
    """Two that suffice together, where none does alone."""


@dataclass(frozen=True)
class Failure:
    """One failed request in short: asked for at once, for there may be one on each of many ranks."""

    rank: RankCapture
    event: OutOfMemory
    place: Place
    fit: Fit


def explain(rank: RankCapture, world_size: int) -> tuple[Explanation, ...]:
    """Explain every failed request of a rank's device, the first one first."""
    return tuple(explain_event(rank, event, world_size) for event in rank.out_of_memory)


def failures_of(ranks: Sequence[RankCapture]) -> tuple[Failure, ...]:
    """The failed requests of some ranks' own, the first one first."""
    events = [(rank, event) for rank in ranks for event in rank.out_of_memory]
    events.sort(key=lambda item: item[1].time_ns)
    found = []
    for rank, event in events:
        fit = fit_of(event)
        if fit is not None:
            found.append(Failure(rank, event, rank.place_at(event.time_ns), fit))
        if len(ranks) > FEW_RANKS:
            rank.release()
    return tuple(found)


def explain_event(rank: RankCapture, event: OutOfMemory, world_size: int) -> Explanation:
    """Explain one failed request, or what this rank held when another's failed."""
    place = rank.place_at(event.time_ns)
    blocks = rank.allocations_at(event.time_ns, top=None)
    fit = fit_of(event)
    remedies: tuple[Remedy, ...] = ()
    together = None
    if fit is not None:
        case = Circumstances(
            event=event,
            fit=fit,
            phase=place.phase,
            blocks=blocks,
            world_size=world_size,
            growth=rank.growth(),
        )
        remedies = remedies_for(case)
        together = two_together(case, remedies)
    return Explanation(
        rank=rank.rank,
        event=event,
        phase=place.phase,
        module=place.module,
        fit=fit,
        categories=rank.categories_at(event.time_ns),
        modules=rank.modules_at(event.time_ns, top=None),
        allocations=blocks,
        remedies=remedies,
        together=together,
    )


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
        "usable_bytes": sum(fit.usable) if fit else None,
        "outside_bytes": fit.outside_bytes if fit else None,
        "categories": categories,
        "remedies": [asdict(remedy) for remedy in found.remedies],
        "together": [remedy.change for remedy in found.together] if found.together else None,
    }
