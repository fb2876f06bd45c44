"""Every training step's peak and end, and what grows from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memlens.answers import Step
from memlens.events import Category
from memlens.web.opened import OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within

__all__ = ["PARAMETERS", "steps", "thinned"]

PARAMETERS = ()
MOST_STEPS = 400
MOST_FRAMES = 12


def steps(rank: OpenedRank, asked: Parameters) -> Json:
    """All steps; of very many the highest of each few."""
    every = rank.steps
    suspects = [
        {
            "category": item.category.value,
            "module": brief(item.module),
            "name": brief(item.name),
            "bytes_per_step": item.bytes_per_step,
            "first_bytes": item.first_bytes,
            "last_bytes": item.last_bytes,
            "steps": item.steps,
            "stack": [
                brief(f"{frame.function} {frame.file}:{frame.line}")
                for frame in item.stack[: -MOST_FRAMES - 1 : -1]
            ],
        }
        for item in rank.growth
    ]

    def build(count: int) -> Json:
        return {
            "count": len(every),
            "steps": [_step(rank, step) for step in thinned(every, count)],
            "growth": suspects,
        }

    return within(build, min(len(every), MOST_STEPS))


def thinned(every: Sequence[Step], most: int) -> list[Step]:
    """So many at most: the highest of each few that follow each other."""
    if len(every) <= most:
        return list(every)
    return [
        max(
            every[len(every) * place // most : len(every) * (place + 1) // most],
            key=lambda step: step.peak_bytes,
        )
        for place in range(most)
    ]


def _step(rank: OpenedRank, step: Step) -> Json:
    return {
        "step": step.step,
        "start": step.start_ns - rank.origin_ns,
        "end": step.end_ns - rank.origin_ns,
        "peak_bytes": step.peak_bytes,
        "end_bytes": step.end_bytes,
        "categories": _present(step.categories),
        "end_categories": _present(step.end_categories),
    }


def _present(categories: Mapping[Category, int]) -> dict[str, int]:
    return {category.value: size for category, size in categories.items() if size}
