"""Jobs that are written down: who asked for how much, in torch's own words, and nothing runs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.model_history import ModelHistory
from tests.support.training import assert_adds_up

import memlens
from memlens.capture import RankCapture
from memlens.importing.convert import import_snapshots
from memlens.options import Options

__all__ = [
    "BACKWARD",
    "FORWARD",
    "MAIN",
    "MAKING",
    "MIB",
    "STEP",
    "ZERO",
    "Frames",
    "Job",
    "categories",
    "stack",
]

Frames = list[dict[str, Any]]

MIB = 2**20
TORCH = "/venv/lib/python3.11/site-packages/torch/"


def stack(*frames: str) -> Frames:
    made = [dict(zip(("name", "filename"), each.split(), strict=True), line=1) for each in frames]
    return [*made, {"name": "<module>", "filename": "/job/train.py", "line": 7}]


MAKING = stack(f"__init__ {TORCH}nn/modules/linear.py")
FORWARD = stack("forward /job/net.py", f"_call_impl {TORCH}nn/modules/module.py")
STEP = stack("adamw /job/mine.py")
ZERO = stack(f"zero_grad {TORCH}optim/optimizer.py")
MAIN = stack("main /job/train.py")
BACKWARD: Frames = []


class Job:
    """Writes a history."""

    def __init__(self, devices: int = 1) -> None:
        self.history = ModelHistory(devices)

    def malloc(self, frames: Frames, *sizes: int, device: int = 0) -> list[int]:
        allocator = self.history.allocators[device]
        allocator.frames = frames
        return [allocator.malloc(size) for size in sizes]

    def free(self, frames: Frames, addresses: Sequence[int], device: int = 0) -> None:
        allocator = self.history.allocators[device]
        allocator.frames = frames
        for address in addresses:
            allocator.free(address)

    def forget(self, device: int = 0) -> None:
        """The ring has wrapped: what was so far is not in the history."""
        self.history.allocators[device].history.clear()

    def imported(self, folder: Path, **changes: Any) -> memlens.Capture:
        path = folder / "a.pickle"
        path.write_bytes(pickle.dumps(self.history.snapshot() | changes))
        run = import_snapshots([path], Options(out=folder / "run"))
        capture = memlens.load(run)
        for rank in capture.ranks:
            assert_adds_up(rank)
            assert rank.coverage.problems == ()
            assert rank.coverage.witness_difference_bytes == 0
        return capture


def categories(rank: RankCapture) -> dict[str, list[int]]:
    """Requested bytes of all blocks by category, in MiB."""
    found: dict[str, list[int]] = {}
    for number in range(len(rank.blocks.first)):
        name = rank.allocation(number).category.value
        found.setdefault(name, []).append(int(rank.blocks.requested_bytes[number]) // MIB)
    return {name: sorted(sizes) for name, sizes in found.items()}
