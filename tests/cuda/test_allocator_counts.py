"""To the byte: what the capture says of a device is what its allocator counts, whatever the settings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns

import pytest
from tests.support.model_history import ModelHistory
from tests.support.training import assert_adds_up

import memlens
from memlens.recording.session import Session

Install = Callable[[ModelHistory], ModelHistory]
KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Counted:
    """What an allocator says of itself at some moments."""

    time_ns: list[int] = field(default_factory=list)
    allocated: list[list[int]] = field(default_factory=list)
    reserved: list[list[int]] = field(default_factory=list)


class Job:
    """Hands out and takes back at random, on two streams of each device."""

    def __init__(self, history: ModelHistory, seed: int) -> None:
        self.history = history
        self.random = random.Random(seed)
        self.alive: list[tuple[int, int]] = []
        self.counted = Counted()

    def run(self, calls: int, session: Session | None = None, drain_every: int = 0) -> None:
        for call in range(calls):
            self.step()
            if session is not None and drain_every and call % drain_every == drain_every - 1:
                recorder = session._recorder
                assert recorder is not None
                recorder.drain()
            if call % 50 == 49:
                self.count()

    def step(self) -> None:
        rng, history = self.random, self.history
        if self.alive and rng.random() < 0.48:
            device, address = self.alive.pop(rng.randrange(len(self.alive)))
            allocator = history.allocators[device]
            if rng.random() < 0.2:
                allocator.record_stream(address, 7)
            history.free(device, address)
            return
        if rng.random() < 0.02:
            rng.choice(history.allocators).synchronize()
        if rng.random() < 0.005:
            rng.choice(history.allocators).empty_cache()
        device = rng.randrange(len(history.allocators))
        kind = rng.random()
        size = (
            rng.randrange(1, 3000)
            if kind < 0.5
            else rng.randrange(500 * KIB, 3 * MIB)
            if kind < 0.8
            else rng.randrange(3 * MIB, 70 * MIB)
        )
        self.alive.append((device, history.malloc(device, size, stream=rng.choice([0, 0, 3]))))

    def count(self) -> None:
        begin = time_ns()
        while time_ns() < begin + 5_000:  # the history tells whole microseconds
            pass
        self.counted.time_ns.append(time_ns())
        self.counted.allocated.append([each.allocated_bytes for each in self.history.allocators])
        self.counted.reserved.append([each.reserved_bytes for each in self.history.allocators])
        while time_ns() < begin + 10_000:
            pass


SETTINGS = [
    "",
    "max_split_size_mb:40",
    "roundup_power2_divisions:4",
    "expandable_segments:True",
    "roundup_power2_divisions:[256:1,512:2,>:8]",
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("before", [0, 400], ids=["from the first block", "begun late"])
def test_allocated_and_reserved_are_the_allocators_own(
    over: Install, tmp_path: Path, settings: str, before: int
) -> None:
    history = over(ModelHistory(2, settings))
    job = Job(history, seed=before + len(settings))
    job.run(before)
    job.counted = Counted()
    for allocator in history.allocators:
        allocator.reset_peaks()
    with memlens.profile(out=tmp_path / "run", stacks=False) as session:
        job.run(3000, session, drain_every=777)
    capture = session.capture
    assert [rank.device for rank in capture.ranks] == ["cuda:0", "cuda:1"]
    for device, rank in enumerate(capture.ranks):
        allocator = history.allocators[device]
        assert rank.coverage.problems == ()
        assert rank.coverage.lost_events == 0
        assert rank.coverage.witness_difference_bytes == 0
        assert_adds_up(rank)
        assert rank.peak().allocated_bytes == allocator.peak_allocated_bytes
        assert rank.reserved_peak_bytes == allocator.peak_reserved_bytes
        for time, allocated, reserved in zip(
            job.counted.time_ns, job.counted.allocated, job.counted.reserved, strict=True
        ):
            assert sum(rank.categories_at(time).values()) == allocated[device]
            slack = rank.slack_at(time)
            assert slack is not None
            assert slack.reserved_bytes == reserved[device]
            assert slack.cached_bytes == reserved[device] - allocated[device]


@pytest.mark.parametrize("settings", SETTINGS)
def test_after_a_loss_every_byte_is_known_again(
    over: Install, tmp_path: Path, settings: str
) -> None:
    history = over(ModelHistory(1, settings, ring=600))
    job = Job(history, seed=5)
    with memlens.profile(out=tmp_path / "run", stacks=False) as session:
        job.run(400, session, drain_every=100)
        made = history.made[0]
        job.run(700)  # wraps
        lost_to = len(job.counted.time_ns)
        assert session._recorder is not None
        kept = sum(
            entry["action"] in ("alloc", "free_requested")
            for entry in history.snapshot()["device_traces"][0]
        )
        lost = history.made[0] - made - kept
        session._recorder.drain()
        job.run(400, session, drain_every=100)
    (rank,) = session.capture.ranks
    assert rank.coverage.lost_events == lost > 0
    assert rank.coverage.witness_difference_bytes == 0
    assert_adds_up(rank)
    counted = job.counted
    at = {
        number: sum(rank.categories_at(time).values())
        for number, time in enumerate(counted.time_ns)
    }
    assert [at[number] for number in range(8)] == [each[0] for each in counted.allocated[:8]]
    assert [at[number] for number in range(lost_to - 1, len(at))] == [
        each[0] for each in counted.allocated[lost_to - 1 :]
    ]


class Raced(ModelHistory):
    """Another thread hands out a block between the copy of the history and its emptying."""

    races = 0

    def enable(self, max_entries: int, *, stacks: bool) -> None:
        if self.races:
            self.races -= 1
            self.malloc(0, 5000)
        super().enable(max_entries, stacks=stacks)


def test_what_comes_between_two_looks_is_counted_as_lost(over: Install, tmp_path: Path) -> None:
    history = Raced(1)
    over(history)
    job = Job(history, seed=3)
    with memlens.profile(out=tmp_path / "run", stacks=False) as session:
        assert session._recorder is not None
        job.run(200)
        history.races = 1
        session._recorder.drain()
        job.run(200)
        session._recorder.drain()
        job.run(100)
        job.count()
    (rank,) = session.capture.ranks
    assert rank.coverage.lost_events == 1
    assert rank.coverage.witness_difference_bytes == 0
    assert_adds_up(rank)
    time, (allocated,) = job.counted.time_ns[-1], job.counted.allocated[-1]
    assert sum(rank.categories_at(time).values()) == allocated
