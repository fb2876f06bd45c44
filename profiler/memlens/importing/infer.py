"""Concludes what blocks are for, from stacks, lifetimes and sizes; all of it is marked as inferred.

Stacks say who asked for a block. Lifetimes say what became of it: what an optimizer asked for is state
if it outlives the step, and else temporary. What was there before the history began mostly has no
stack; it is told by its size: for each gradient there is a weight as large, and the optimizer's states.
Where nothing is evidence, a block stays unknown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from memlens.events import Category
from memlens.importing.evidence import Evidence
from memlens.importing.made import Made
from memlens.importing.timeline import FOREVER, Stretches, Timeline
from memlens.importing.workspaces import find_workspaces

__all__ = ["infer"]

MOST_STATES = 2
"""Per weight, of its size: AdamW's two moments. Of those made before the history began."""


def infer(blocks: Sequence[Made], timeline: Timeline, steps: Stretches) -> None:
    """Set the category of each block.

    Args:
        blocks: in the order of allocation.
        timeline: what was going on when.
        steps: when optimizers are known to have stepped.
    """
    for block in blocks:
        if block.is_early:
            block.category = _of_early(block, timeline)
        else:
            block.category = _of_made(block, timeline, steps)
    find_workspaces(blocks, timeline)
    _only_gradients_of_weights(blocks, timeline)
    _find_weights_and_states(blocks, timeline)


def _of_made(block: Made, timeline: Timeline, steps: Stretches) -> Category:
    now, following = timeline.at(block.alloc_ns), timeline.after(block.alloc_ns)
    ends, evidence = block.free_ns, block.evidence
    # Runs are told by allocations; what was given back after the last one of a run is told by its stack.
    within = now is not None and ends <= now.end_ns and ends != FOREVER
    within = within and block.freed_by not in _OUTSIDE
    told = _BY_STACK.get(evidence)
    if told is not None:
        return told
    if evidence in _STEPS or (
        evidence is Evidence.NOTHING and now is not None and now.what is Evidence.OPTIMIZER
    ):
        step_end = steps.end_of(block.alloc_ns)  # a closure may come in between
        within = within or (step_end is not None and ends <= step_end)
        return Category.OPTIMIZER_TEMPORARY if within else Category.OPTIMIZER_STATE
    if evidence is Evidence.MAKING:
        outlives = ends == FOREVER or (following is not None and ends > following.start_ns)
        return Category.WEIGHT if outlives else Category.TEMPORARY
    if evidence is Evidence.BACKWARD:
        return Category.TEMPORARY if within else Category.GRADIENT
    if evidence is Evidence.FORWARD:
        return Category.TEMPORARY if within else Category.ACTIVATION
    if evidence in (Evidence.JOB, Evidence.ASIDE) and following is not None:
        if ends <= following.start_ns:
            return Category.TEMPORARY
        # Alive when the next thing begins, it was made for it: a batch for a forward, the loss for a
        # backward.
        if following.what is Evidence.FORWARD:
            return Category.INPUT
        if following.what is Evidence.BACKWARD:
            return Category.ACTIVATION
    return Category.UNKNOWN


_OUTSIDE = (Evidence.JOB, Evidence.ZEROING)
_STEPS = (Evidence.OPTIMIZER, Evidence.STEP_IN_BACKWARD)
_BY_STACK = {
    Evidence.WORKSPACE: Category.WORKSPACE,
    Evidence.COMMUNICATION: Category.COMMUNICATION,
    Evidence.LOADING: Category.INPUT,
    Evidence.RECOMPUTE: Category.ACTIVATION,
}
"""What needs no look at its lifetime."""
_EARLY_BY_STACK = _BY_STACK | {
    Evidence.OPTIMIZER: Category.OPTIMIZER_STATE,
    Evidence.STEP_IN_BACKWARD: Category.OPTIMIZER_STATE,
    Evidence.MAKING: Category.WEIGHT,
    Evidence.BACKWARD: Category.GRADIENT,
    Evidence.FORWARD: Category.ACTIVATION,
}


def _of_early(block: Made, timeline: Timeline) -> Category:
    """What was there before: it has a stack if stacks were recorded for longer than events."""
    if block.freed_by is Evidence.ZEROING:
        return Category.GRADIENT
    told = _EARLY_BY_STACK.get(block.evidence)
    if told is not None:
        return told
    freed_in = None if block.free_ns == FOREVER else timeline.at(block.free_ns)
    if freed_in is None or block.freed_by is Evidence.JOB:
        return Category.UNKNOWN
    if freed_in.what is Evidence.BACKWARD:
        return Category.ACTIVATION
    # The gradients that a step uses up are younger, if there was a backward since.
    backward = timeline.first(Evidence.BACKWARD)
    is_after = backward is not None and backward.start_ns < freed_in.start_ns
    if freed_in.what is Evidence.OPTIMIZER and is_after:
        return Category.OPTIMIZER_STATE
    return Category.UNKNOWN


def _only_gradients_of_weights(blocks: Sequence[Made], timeline: Timeline) -> None:
    """Where a history ends within a backward, what is left of it may be temporary as well."""
    last = timeline.runs[-1] if timeline.runs else None
    if last is None or last.what is not Evidence.BACKWARD:
        return
    sizes = {
        block.requested_bytes
        for block in blocks
        if block.category is Category.WEIGHT
        or (block.is_early and block.category is Category.UNKNOWN)
    }
    for block in blocks:
        if (
            block.category is Category.GRADIENT
            and block.alloc_ns >= last.start_ns
            and block.requested_bytes not in sizes
        ):
            block.category = Category.UNKNOWN


def _find_weights_and_states(blocks: Sequence[Made], timeline: Timeline) -> None:
    """For each gradient there is a weight of its size, and perhaps there are states.

    Sought among what was there before the first forward and outlives what follows. States that were made
    before the history began are told by their number: as many as weights, or a multiple.
    """
    if not timeline.runs:
        return
    begin_ns, last_ns = timeline.runs[0].start_ns, timeline.runs[-1].start_ns
    of_size: defaultdict[int, list[Made]] = defaultdict(list)
    for block in blocks:
        is_unclear = block.category in (Category.UNKNOWN, Category.INPUT) and (
            block.is_early or block.evidence is Evidence.JOB
        )
        if is_unclear and block.free_ns > last_ns and block.alloc_ns < begin_ns:
            of_size[block.requested_bytes].append(block)
    made = [block for block in blocks if block.category is Category.GRADIENT]
    gradients = _most_at_once(made) | _most_in_a_run(made, timeline)
    states = _most_at_once(b for b in blocks if b.category is Category.OPTIMIZER_STATE)
    weights = Counter(b.requested_bytes for b in blocks if b.category is Category.WEIGHT)
    for size, count in gradients.items():
        left = of_size[size]
        missing = max(0, count - weights[size])
        for block in left[:missing]:
            block.category = Category.WEIGHT
        rest = [block for block in left[missing:] if block.is_early]
        if rest and len(rest) % count == 0 and len(rest) + states[size] <= MOST_STATES * count:
            for block in rest:
                block.category = Category.OPTIMIZER_STATE


def _most_in_a_run(gradients: Iterable[Made], timeline: Timeline) -> Counter[int]:
    """How many of each size one backward makes: of some, each is used up before the next is made."""
    of_run: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for block in gradients:
        run = timeline.at(block.alloc_ns)
        if run is not None and not block.is_early:
            of_run[run.start_ns][block.requested_bytes] += 1
    most: Counter[int] = Counter()
    for sizes in of_run.values():
        most |= sizes
    return most


def _most_at_once(blocks: Iterable[Made]) -> Counter[int]:
    """How many blocks of each size there are at most at one moment."""
    changes = []
    for block in blocks:
        changes.append((block.alloc_ns, 1, block.requested_bytes))
        if block.free_ns != FOREVER:
            changes.append((block.free_ns, -1, block.requested_bytes))
    now: Counter[int] = Counter()
    most: Counter[int] = Counter()
    for _, change, size in sorted(changes):
        now[size] += change
        most[size] = max(most[size], now[size])
    return most
