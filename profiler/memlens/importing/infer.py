"""Concludes what blocks are for, from stacks, lifetimes and sizes; all of it is marked as inferred.

Stacks say who asked for a block. Lifetimes say what became of it: what an optimizer asked for is state
if it outlives the step, and else temporary. What was there before the history began mostly has no
stack; it is told by its size: for each gradient there is a weight as large, and the optimizer's states.
Where nothing is evidence, a block stays unknown.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memlens.events import Category
from memlens.importing.evidence import Evidence
from memlens.importing.timeline import FOREVER, Stretches, Timeline
from memlens.sources.cuda_workspaces import workspace_bytes

__all__ = ["Made", "infer"]

WORKSPACES = frozenset(workspace_bytes({}))
MOST_WORKSPACES = 2
"""Of one device, of those that no stack tells: torch makes one per thread that multiplies matrices."""
MOST_STATES = 2
"""Per weight, of its size: AdamW's two moments. Of those made before the history began."""


@dataclass
class Made:
    """One block."""

    alloc_ns: int
    free_ns: int
    requested_bytes: int
    evidence: Evidence
    is_early: bool
    """It was there before the history began."""
    is_zeroed: bool = False
    """It was given back by `zero_grad`."""
    category: Category = Category.UNKNOWN


def infer(blocks: Sequence[Made], timeline: Timeline, zeroed: Stretches) -> None:
    """Set the category of each block.

    Args:
        blocks: in the order of allocation.
        timeline: what was going on when.
        zeroed: when gradients are known to have been set to None.
    """
    for block in blocks:
        if block.is_early:
            block.category = _of_early(block, timeline, zeroed)
        else:
            block.category = _of_made(block, timeline)
    _find_workspaces(blocks)
    _only_gradients_of_weights(blocks, timeline)
    _find_weights_and_states(blocks, timeline)


def _of_made(block: Made, timeline: Timeline) -> Category:
    now, following = timeline.at(block.alloc_ns), timeline.after(block.alloc_ns)
    ends, evidence = block.free_ns, block.evidence
    within = now is not None and ends <= now.end_ns and ends != FOREVER
    told = _BY_STACK.get(evidence)
    if told is not None:
        return told
    if evidence is Evidence.OPTIMIZER or (now is not None and now.what is Evidence.OPTIMIZER):
        return Category.OPTIMIZER_TEMPORARY if within else Category.OPTIMIZER_STATE
    if evidence is Evidence.MAKING:
        outlives = ends == FOREVER or (following is not None and ends > following.start_ns)
        return Category.WEIGHT if outlives else Category.TEMPORARY
    if evidence is Evidence.BACKWARD:
        return Category.TEMPORARY if within and not block.is_zeroed else Category.GRADIENT
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


_BY_STACK = {
    Evidence.WORKSPACE: Category.WORKSPACE,
    Evidence.COMMUNICATION: Category.COMMUNICATION,
    Evidence.LOADING: Category.INPUT,
    Evidence.RECOMPUTE: Category.ACTIVATION,
}
"""What needs no look at its lifetime."""
_EARLY_BY_STACK = _BY_STACK | {
    Evidence.OPTIMIZER: Category.OPTIMIZER_STATE,
    Evidence.MAKING: Category.WEIGHT,
    Evidence.BACKWARD: Category.GRADIENT,
    Evidence.FORWARD: Category.ACTIVATION,
}


def _of_early(block: Made, timeline: Timeline, zeroed: Stretches) -> Category:
    """What was there before: it has a stack if stacks were recorded for longer than events."""
    if block.is_zeroed or block.free_ns in zeroed:
        return Category.GRADIENT
    told = _EARLY_BY_STACK.get(block.evidence)
    if told is not None:
        return told
    freed_in = None if block.free_ns == FOREVER else timeline.at(block.free_ns)
    if freed_in is not None and freed_in.what is Evidence.BACKWARD:
        return Category.ACTIVATION
    return Category.UNKNOWN


def _find_workspaces(blocks: Sequence[Made]) -> None:
    """Where stacks do not reach into C++, a workspace looks like what its thread was about.

    Tensors have the same sizes: 32 MiB is a matrix of 4096 columns in bfloat16. So the first one of a
    thread is taken, which the first product of matrices made, and in backward only where there are
    more blocks of the size than weights to have gradients.
    """
    if any(block.evidence is Evidence.WORKSPACE for block in blocks):
        return  # the stacks tell
    candidates = [
        block
        for block in blocks
        if block.requested_bytes in WORKSPACES and block.free_ns == FOREVER
    ]
    for evidence, category in (
        (Evidence.FORWARD, Category.ACTIVATION),
        (Evidence.BACKWARD, Category.GRADIENT),
    ):
        mine = [block for block in candidates if block.category is category and not block.is_early]
        mine = [block for block in mine if block.evidence is evidence]
        for first in mine[:1]:
            size = first.requested_bytes
            made = sum(block.requested_bytes == size for block in mine)
            held = sum(
                block.requested_bytes == size
                and (block.category is Category.WEIGHT or block.is_early)
                for block in blocks
            )
            if evidence is Evidence.FORWARD or made > held:
                first.category = Category.WORKSPACE
    early = [block for block in candidates if block.is_early and block.category is Category.UNKNOWN]
    has_gradients = {b.requested_bytes for b in blocks if b.category is Category.GRADIENT}
    if len(early) <= MOST_WORKSPACES:
        for block in early:
            if block.requested_bytes not in has_gradients:
                block.category = Category.WORKSPACE


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

    Sought among what stays for ever and was there before the first forward. States that were made
    before the history began are told by their number: as many as weights, or a multiple.
    """
    begin_ns = timeline.runs[0].start_ns if timeline.runs else FOREVER
    of_size: defaultdict[int, list[Made]] = defaultdict(list)
    for block in blocks:
        is_unclear = block.category in (Category.UNKNOWN, Category.INPUT) and (
            block.is_early or block.evidence is Evidence.JOB
        )
        if is_unclear and block.free_ns == FOREVER and block.alloc_ns < begin_ns:
            of_size[block.requested_bytes].append(block)
    gradients = _most_at_once(b for b in blocks if b.category is Category.GRADIENT)
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
