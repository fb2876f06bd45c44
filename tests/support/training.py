"""Runs a training job with and without memlens, and holds what must be true of every capture."""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.support.traces import leftover_hooks

import memlens
from memlens.capture import RankCapture
from memlens.disk.format import codes
from memlens.events import Action, Category
from memlens.recording.session import Session

__all__ = [
    "Job",
    "Outcome",
    "Recorded",
    "Recording",
    "assert_adds_up",
    "assert_sound",
    "brute_force_totals",
    "fingerprint",
    "held",
    "most_between",
    "now",
    "run_both",
]

Recording = Callable[[], AbstractContextManager[object]]
"""What a job wraps around the part of it that is to be recorded."""


@dataclass
class Outcome:
    """What a job gives back."""

    values: list[torch.Tensor] = field(default_factory=list, repr=False)
    """Final weights and the like: everything that must be the same to the bit under memlens."""
    losses: list[float] = field(default_factory=list, repr=False)
    """The same for numbers, which a job can keep without allocating memory."""
    moments: dict[str, int] = field(default_factory=dict)
    """When what was over, to ask the capture about."""
    models: list[torch.nn.Module] = field(default_factory=list, repr=False)
    """In the end no hook may be left on them."""


Job = Callable[[Recording], Outcome]


@dataclass
class Recorded:
    """A job's run under memlens."""

    rank: RankCapture
    outcome: Outcome
    session: Session

    def at(self, moment: str) -> dict[Category, int]:
        """Bytes per category at one of the job's moments, without the zeros."""
        return held(self.rank, self.outcome.moments[moment])


def now() -> int:
    """A moment that no event lies close to.

    The profiler's clock and this one may differ by some 100 ns, so keep away from what has just been
    freed and from what will be allocated next.
    """
    begin = time.time_ns()
    while time.time_ns() < begin + 20_000:
        pass
    end = time.time_ns()
    while time.time_ns() < end + 20_000:
        pass
    return end


def held(rank: RankCapture, time_ns: int) -> dict[Category, int]:
    """Bytes per category at a moment, without the zeros."""
    return {name: size for name, size in rank.categories_at(time_ns).items() if size}


def most_between(rank: RankCapture, category: Category | None, begin_ns: int, end_ns: int) -> int:
    """Most bytes between two moments, of one category or (None) of all together."""
    timeline = rank.timeline()
    # An entry holds until the next, so the last one before the beginning counts as well.
    first = max(int(np.searchsorted(timeline.time_ns, begin_ns, side="right")) - 1, 0)
    last = int(np.searchsorted(timeline.time_ns, end_ns, side="right"))
    sizes = timeline.allocated_bytes if category is None else timeline.categories[category]
    return int(sizes[first:last].max())


def run_both(job: Job, folder: Path, **options: Any) -> Recorded:
    """Run a job plainly and under memlens; see that it is the same job and a sound capture.

    Args:
        job: seeded here; calls what it is given around the part that is recorded.
        folder: where the capture goes.
        options: for `memlens.profile`.
    """
    torch.manual_seed(0)
    plain = fingerprint(job(nullcontext))
    gc.collect()  # nothing of the plain run may be there to be counted
    torch.manual_seed(0)
    session = memlens.profile(out=folder / "run", **options)
    outcome = job(lambda: session)
    assert fingerprint(outcome) == plain, "the job differs under memlens"
    for model in outcome.models:
        assert leftover_hooks(model) == []
    capture = session.capture
    assert len(capture.ranks) == 1
    assert capture.problems == ()
    recorded = Recorded(capture.ranks[0], outcome, session)
    assert_sound(recorded.rank)
    return recorded


def fingerprint(outcome: Outcome) -> tuple[list[float], list[str]]:
    """All that a job gives back, to the bit; without its tensors, which would stay in memory."""
    assert outcome.values
    assert all(math.isfinite(loss) for loss in outcome.losses)
    return outcome.losses, [
        hashlib.sha256(
            f"{value.dtype} {tuple(value.shape)}".encode()
            + value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for value in outcome.values
    ]


def assert_sound(rank: RankCapture, *, complete: bool = True) -> None:
    """Conservation at every entry, nothing lost, and next to nothing unknown at the peak."""
    coverage = rank.coverage
    assert coverage.witness_difference_bytes == 0
    assert coverage.lost_events == 0
    if complete:
        assert coverage.problems == ()
        assert coverage.complete
        assert coverage.blind_ns == 0
    assert_adds_up(rank)
    peak = rank.peak()
    assert peak.categories[Category.UNKNOWN] * 100 < peak.allocated_bytes, peak.categories


def assert_adds_up(rank: RankCapture) -> None:
    """The categories sum to the total at every entry, and the total is what the events say."""
    timeline = rank.timeline()
    assert len(timeline.time_ns) > 0
    assert bool(np.all(np.diff(timeline.time_ns) >= 0))
    assert set(timeline.categories) == set(Category)
    total = np.sum([timeline.categories[category] for category in Category], axis=0)
    np.testing.assert_array_equal(total, timeline.allocated_bytes)
    assert all(int(sizes.min()) >= 0 for sizes in timeline.categories.values())
    if rank.coverage.blind_ns == 0:
        np.testing.assert_array_equal(timeline.allocated_bytes, brute_force_totals(rank))
    peak = rank.peak()
    assert sum(peak.categories.values()) == peak.allocated_bytes
    assert peak.allocated_bytes == int(timeline.allocated_bytes.max())
    for step in rank.steps():
        assert sum(step.categories.values()) == step.peak_bytes <= peak.allocated_bytes
        assert sum(step.end_categories.values()) == step.end_bytes <= step.peak_bytes


def brute_force_totals(rank: RankCapture) -> npt.NDArray[np.int64]:
    """Bytes allocated after each event, by a dictionary of what is alive: address to bytes."""
    code = codes(Action)
    events = rank.history.events
    of_blocks = [
        code[name] for name in ("alloc", "free", "free_requested", "census", "census_free")
    ]
    order = np.flatnonzero(np.isin(events["action"], of_blocks))
    alive: dict[int, int] = {}
    total, totals = 0, []
    begins = {code["alloc"], code["census"]}
    for action, address, size in zip(
        events["action"][order].tolist(),
        events["address"][order].tolist(),
        events["allocated_bytes"][order].tolist(),
        strict=True,
    ):
        total -= alive.pop(address, 0)
        if action in begins:
            alive[address] = size
            total += size
        totals.append(total)
    return np.array(totals, np.int64)
