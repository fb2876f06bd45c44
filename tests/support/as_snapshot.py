"""What a GPU's allocator would have recorded of a job that ran on the CPU, and what was true of it.

The job's allocations, their order, times and Python stacks are real. Not real are addresses, which are of
memlens' model of the allocator; and stacks of backward, of which CUDA shows only what lies on the thread
of the autograd engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import time_ns
from typing import Any
from unittest.mock import patch

import torch

from memlens.allocator.caching import CachingAllocator
from memlens.capture import RankCapture
from memlens.disk.format import codes
from memlens.events import Category, MarkKind

__all__ = ["as_snapshot", "noting_zero_grad"]

FROM_ENGINE_ON = "_engine_run_backward"
MAIN = [{"name": "<module>", "filename": "/job/train.py", "line": 1}]
"""On the CPU, frees are recorded without stacks. On CUDA those of backward have no frames of Python."""
Stretches = Sequence[tuple[int, int]]


@contextmanager
def noting_zero_grad() -> Iterator[list[tuple[int, int]]]:
    """Note from when to when `zero_grad` of any optimizer runs, in ns."""
    noted: list[tuple[int, int]] = []
    original = torch.optim.Optimizer.zero_grad

    def zero_grad(self: torch.optim.Optimizer, set_to_none: bool = True) -> None:
        begin = time_ns()
        original(self, set_to_none)
        noted.append((begin, time_ns()))

    with patch.object(torch.optim.Optimizer, "zero_grad", zero_grad):
        yield noted


def as_snapshot(
    rank: RankCapture, zeroed: Stretches = (), *, late_by: float = 0.0
) -> tuple[dict[str, Any], list[Category]]:
    """Make a torch memory snapshot of a capture.

    Args:
        rank: recorded on the CPU, with stacks.
        zeroed: from when to when `zero_grad` ran.
        late_by: which part of the history, from its beginning, is not in the snapshot.

    Returns:
        The snapshot, and what each block in it was for: first those that were there when its history
        began, by address, then in the order of its allocations.
    """
    blocks = rank.blocks
    now_us = [0]
    allocator = CachingAllocator(clock=lambda: now_us[0])
    events = []
    for number, (first, last) in enumerate(zip(blocks.first, blocks.last, strict=True)):
        events.append((int(first), number, True))
        if last < len(blocks.time_ns):
            events.append((int(last), number, False))
    events.sort()
    begin = max(int(len(events) * late_by), int(blocks.preexisting.sum()))
    backwards = _between_marks(rank, "backward")
    stacks: dict[int, list[dict[str, Any]]] = {}
    frames: dict[tuple[str, str, int], dict[str, Any]] = {}
    address: dict[int, int] = {}
    early: dict[int, int] = {}
    made: list[int] = []
    for place, (event, number, is_begin) in enumerate(events):
        time = int(blocks.time_ns[event])
        now_us[0] = time // 1000
        if place == begin:
            allocator.history.clear()
            early = {address[each]: each for each in address}
            made = []
        if is_begin:
            stack = int(blocks.stack[number])
            if stack not in stacks:
                stacks[stack] = _frames(rank, stack, frames)
            allocator.frames = stacks[stack] if place >= begin else []
            address[number] = allocator.malloc(int(blocks.size_bytes[number]))
            made.append(number)
        else:
            is_engine = any(start <= time <= end for start, end in backwards)
            allocator.frames = [] if is_engine else MAIN
            allocator.free(address.pop(number))
    snapshot = allocator.snapshot()
    snapshot["external_annotations"] = _annotations(rank, zeroed)
    categories = list(Category)
    truth = [early[each] for each in sorted(early)] + made
    return snapshot, [categories[rank.attribution.category[number]] for number in truth]


def _annotations(rank: RankCapture, zeroed: Stretches) -> list[dict[str, Any]]:
    """What torch notes of optimizers."""
    stretches = [("step", *each) for each in _between_marks(rank, "optimizer")]
    stretches += [("zero_grad", *each) for each in zeroed]
    return [
        {"stage": stage, "name": f"Optimizer.{name}#O.{name}", "device": 0, "time_us": time // 1000}
        for name, *times in stretches
        for stage, time in zip(("START", "END"), times, strict=True)
    ]


def _between_marks(rank: RankCapture, kind: str) -> list[tuple[int, int]]:
    marks = rank._data.marks
    begins, ends = (
        marks["time_ns"][marks["kind"] == codes(MarkKind)[f"{kind}_{side}"]].tolist()
        for side in ("enter", "exit")
    )
    return list(zip(begins, ends, strict=True))


def _frames(
    rank: RankCapture, stack: int, known: dict[tuple[str, str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for frame in reversed(rank.texts.stack(stack)):
        if frame.function == FROM_ENGINE_ON:
            break
        key = frame.function, frame.file, frame.line
        made = {"name": frame.function, "filename": frame.file, "line": frame.line}
        found.append(known.setdefault(key, made))
    return found
