"""Concludes what blocks are for, from stacks, lifetimes and sizes; all of it is marked as inferred.

Stacks say who asked for a block. Lifetimes say what became of it: what an optimizer asked for is state
if it outlives the step, and else temporary. What was there before the history began mostly has no
stack; it is told by its size: for each gradient there is a weight as large, and the optimizer's states.
Where nothing is evidence, a block stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memlens.events import Category
from memlens.importing.evidence import Evidence

__all__ = ["Made", "Run", "infer", "runs_of"]

WORKSPACES = frozenset({(4096 * 2 + 16 * 8) * 1024, 4096 * 8 * 1024})
"""What torch gives to cuBLAS; see `memlens.sources.cuda_workspaces`."""
FOREVER = np.iinfo(np.int64).max
_RUNS = {
    Evidence.OPTIMIZER: Evidence.OPTIMIZER,
    Evidence.BACKWARD: Evidence.BACKWARD,
    Evidence.RECOMPUTE: Evidence.BACKWARD,
    Evidence.FORWARD: Evidence.FORWARD,
}


@dataclass(frozen=True)
class Made:
    """One block."""

    alloc_ns: int
    free_ns: int
    requested_bytes: int
    evidence: Evidence
    is_early: bool
    """It was there before the history began."""


@dataclass(frozen=True)
class Run:
    """A stretch of time in which one thing was going on."""

    what: Evidence
    start_ns: int
    end_ns: int
    """FOREVER: the history ends within it."""


def runs_of(blocks: Sequence[Made], steps: Sequence[tuple[int, int]]) -> list[Run]:
    """When forwards, backwards and optimizer steps were.

    Args:
        blocks: in the order of allocation.
        steps: when optimizers are known to have stepped, in order.
    """
    runs: list[Run] = []
    current: Evidence | None = None
    start = 0
    for block in blocks:
        if block.is_early:
            continue
        what = _RUNS.get(block.evidence)
        if any(begin <= block.alloc_ns <= end for begin, end in steps):
            what = Evidence.OPTIMIZER
        if what is None and block.evidence is not Evidence.JOB:
            continue  # says nothing of what goes on
        if what is not current:
            if current is not None:
                runs.append(Run(current, start, block.alloc_ns))
            current, start = what, block.alloc_ns
    if current is not None:
        runs.append(Run(current, start, FOREVER))
    return runs


def infer(
    blocks: Sequence[Made], runs: Sequence[Run], zeroed: Sequence[tuple[int, int]]
) -> list[Category]:
    """A category for each block.

    Args:
        blocks: in the order of allocation.
        runs: what was going on when.
        zeroed: when gradients were set to None.
    """
    starts = np.array([run.start_ns for run in runs], np.int64)
    categories = [
        Category.UNKNOWN
        if block.is_early
        else _of_made(block, _run_at(runs, starts, block.alloc_ns))
        for block in blocks
    ]
    _only_gradients_of_weights(blocks, categories, runs)
    _of_early(blocks, categories, runs, zeroed)
    return categories


def _run_at(
    runs: Sequence[Run], starts: npt.NDArray[np.int64], time_ns: int
) -> tuple[Run | None, Run | None]:
    """The run that a moment lies in, and the next."""
    place = int(np.searchsorted(starts, time_ns, side="right")) - 1
    now = runs[place] if place >= 0 and time_ns < runs[place].end_ns else None
    following = runs[place + 1] if place + 1 < len(runs) else None
    return now, following


def _of_made(block: Made, place: tuple[Run | None, Run | None]) -> Category:
    now, following = place
    ends = block.free_ns
    within = now is not None and ends <= now.end_ns and ends != FOREVER
    evidence = block.evidence
    if evidence is Evidence.WORKSPACE or (
        block.requested_bytes in WORKSPACES and ends == FOREVER and now is not None
    ):
        return Category.WORKSPACE
    if evidence is Evidence.COMMUNICATION:
        return Category.COMMUNICATION
    if evidence is Evidence.LOADING:
        return Category.INPUT
    if evidence is Evidence.OPTIMIZER or (now is not None and now.what is Evidence.OPTIMIZER):
        return Category.OPTIMIZER_TEMPORARY if within else Category.OPTIMIZER_STATE
    if evidence is Evidence.MAKING:
        return Category.WEIGHT if ends == FOREVER or not within else Category.TEMPORARY
    if evidence is Evidence.BACKWARD:
        return Category.TEMPORARY if within else Category.GRADIENT
    if evidence is Evidence.RECOMPUTE:
        return Category.ACTIVATION
    if evidence is Evidence.FORWARD:
        return Category.TEMPORARY if within else Category.ACTIVATION
    if evidence is Evidence.JOB and following is not None:
        # Alive when the next thing begins: made for it. A forward takes batches, a backward the loss.
        if ends > following.start_ns:
            return Category.ACTIVATION if following.what is Evidence.BACKWARD else Category.INPUT
        return Category.TEMPORARY
    return Category.UNKNOWN


def _only_gradients_of_weights(
    blocks: Sequence[Made], categories: list[Category], runs: Sequence[Run]
) -> None:
    """Where a history ends within a backward, what is left of it may be temporary as well."""
    if not runs or runs[-1].what is not Evidence.BACKWARD:
        return
    sizes = {
        block.requested_bytes
        for block, category in zip(blocks, categories, strict=True)
        if block.is_early or category is Category.WEIGHT
    }
    for number, block in enumerate(blocks):
        if (
            categories[number] is Category.GRADIENT
            and block.alloc_ns >= runs[-1].start_ns
            and block.requested_bytes not in sizes
        ):
            categories[number] = Category.UNKNOWN


def _of_early(
    blocks: Sequence[Made],
    categories: list[Category],
    runs: Sequence[Run],
    zeroed: Sequence[tuple[int, int]],
) -> None:
    """What was there before the history began."""
    gradients: Counter[int] = Counter()
    states: Counter[int] = Counter()
    for block, category in zip(blocks, categories, strict=True):
        if category is Category.GRADIENT:
            gradients[block.requested_bytes] += 1
        elif category is Category.OPTIMIZER_STATE:
            states[block.requested_bytes] += 1
    left: list[int] = []
    for number, block in enumerate(blocks):
        if not block.is_early:
            continue
        category = _early_by_stack(block)
        if category is Category.UNKNOWN:
            category = _early_by_end(block, runs, zeroed)
            if category is Category.GRADIENT:
                gradients[block.requested_bytes] += 1
        if category is Category.UNKNOWN:
            left.append(number)
        categories[number] = category
    # For each gradient a weight of its size; and if states were not made since, they are there as well.
    weights = Counter(gradients)
    steps = sum(run.what is Evidence.BACKWARD for run in runs) or 1
    for size in weights:
        weights[size] = -(-weights[size] // steps)
    expected_states = {size: max(0, 2 * count - states[size]) for size, count in weights.items()}
    for number in left:
        size = blocks[number].requested_bytes
        if size in WORKSPACES and not weights[size]:
            categories[number] = Category.WORKSPACE
        elif weights[size] > 0:
            weights[size] -= 1
            categories[number] = Category.WEIGHT
        elif expected_states.get(size, 0) > 0:
            expected_states[size] -= 1
            categories[number] = Category.OPTIMIZER_STATE


def _early_by_stack(block: Made) -> Category:
    return {
        Evidence.OPTIMIZER: Category.OPTIMIZER_STATE,
        Evidence.MAKING: Category.WEIGHT,
        Evidence.BACKWARD: Category.GRADIENT,
        Evidence.RECOMPUTE: Category.ACTIVATION,
        Evidence.FORWARD: Category.ACTIVATION,
        Evidence.LOADING: Category.INPUT,
        Evidence.COMMUNICATION: Category.COMMUNICATION,
        Evidence.WORKSPACE: Category.WORKSPACE,
    }.get(block.evidence, Category.UNKNOWN)


def _early_by_end(block: Made, runs: Sequence[Run], zeroed: Sequence[tuple[int, int]]) -> Category:
    if block.free_ns == FOREVER:
        return Category.UNKNOWN
    if any(begin <= block.free_ns <= end for begin, end in zeroed):
        return Category.GRADIENT
    for run in runs:
        if run.start_ns <= block.free_ns < run.end_ns and run.what is Evidence.BACKWARD:
            return Category.ACTIVATION
    return Category.UNKNOWN
