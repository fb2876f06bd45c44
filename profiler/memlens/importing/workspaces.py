"""Finds the workspaces of cuBLAS where stacks do not reach into C++, which would name them.

Their size alone is no evidence: 32 MiB is also a matrix of 4096 x 4096 in bfloat16. But torch takes one
per thread, at the first product of matrices, right behind the product's result (as seen in snapshots
with C++ stacks), and keeps it. So there is at most one in forward and one in backward, and if the
history shows none being made, they were there when it began.
"""

from __future__ import annotations

from collections.abc import Sequence

from memlens.events import Category
from memlens.importing.evidence import Evidence
from memlens.importing.made import Made
from memlens.importing.stacks import is_python
from memlens.importing.timeline import FOREVER, Run, Timeline
from memlens.sources.cuda_workspaces import OTHER_BYTES, workspace_bytes

__all__ = ["find_workspaces"]

SIZES = frozenset(workspace_bytes({}))


def find_workspaces(blocks: Sequence[Made], timeline: Timeline) -> None:
    """Set the category of those that are workspaces, to unknown where one may be or not.

    Args:
        blocks: in the order of allocation; their categories are known as far as stacks and lifetimes
            tell.
        timeline: what was going on when.
    """
    if any(block.evidence is Evidence.WORKSPACE for block in blocks):
        return  # the stacks tell
    forward, backward = timeline.first(Evidence.FORWARD), timeline.first(Evidence.BACKWARD)
    found: list[Made | None] = []  # of each thread that is known to multiply
    if any(block.frames and not is_python(block.frames[0]) for block in blocks):
        found = [None] * sum(run is not None for run in (forward, backward))  # the stacks deny
    else:
        if forward is not None:
            found.append(_of_forward(blocks, backward))
        if backward is not None:
            found.append(_of_backward(blocks, backward, timeline))
    _find_early(blocks, found, is_outlived=_is_over(backward))


def _of_forward(blocks: Sequence[Made], backward: Run | None) -> Made | None:
    """Made before the first backward, and there for ever, unlike what backward needs."""
    until = FOREVER if backward is None else backward.start_ns
    last: Made | None = None
    for block in blocks:
        if block.is_early or block.alloc_ns >= until:
            continue
        is_behind_a_result = last is not None and last.frames == block.frames
        if block.category is Category.ACTIVATION and _may_be(block) and is_behind_a_result:
            is_sure = _is_over(backward) or block.requested_bytes == OTHER_BYTES
            block.category = Category.WORKSPACE if is_sure else Category.UNKNOWN
            return block
        last = block
    return None


def _of_backward(blocks: Sequence[Made], run: Run, timeline: Timeline) -> Made | None:
    """Made by the first backward, and no gradient: those are as many as weights, or are given back."""
    gradients = [
        block
        for block in blocks
        if block.category is Category.GRADIENT
        and not block.is_early
        and run.start_ns <= block.alloc_ns < run.end_ns
    ]
    first = next((block for block in gradients if _may_be(block)), None)
    if first is None:
        return None
    size = first.requested_bytes
    made = sum(block.requested_bytes == size for block in gradients)
    begin_ns = timeline.runs[0].start_ns
    weights = sum(
        block.requested_bytes == size and block.alloc_ns < begin_ns and block.free_ns > run.start_ns
        for block in blocks
    )
    others_are_given_back = any(block.free_ns != FOREVER for block in gradients)
    is_alone = others_are_given_back and timeline.is_repeated(run)
    if size == OTHER_BYTES or (_is_over(run) and (made > weights or is_alone)):
        first.category = Category.WORKSPACE
        return first
    return None


def _find_early(blocks: Sequence[Made], found: Sequence[Made | None], *, is_outlived: bool) -> None:
    """As many as threads need that made none; what a forward made outlives the backward that needs it."""
    has_gradients = {b.requested_bytes for b in blocks if b.category is Category.GRADIENT}
    makers = (Evidence.NOTHING, Evidence.FORWARD) if is_outlived else (Evidence.NOTHING,)
    early = [
        block
        for block in blocks
        if block.is_early
        and block.evidence in makers
        and _may_be(block)
        and block.requested_bytes not in has_gradients
    ]
    # A device has workspaces of one size.
    sizes = {block.requested_bytes for block in [*found, *early] if block is not None}
    if OTHER_BYTES in sizes:  # no tensor has such a size
        early = [block for block in early if block.requested_bytes == OTHER_BYTES]
    elif len(early) != found.count(None):
        return
    for block in early:
        block.category = Category.WORKSPACE


def _is_over(run: Run | None) -> bool:
    return run is not None and run.end_ns != FOREVER


def _may_be(block: Made) -> bool:
    return block.requested_bytes in SIZES and block.free_ns == FOREVER
