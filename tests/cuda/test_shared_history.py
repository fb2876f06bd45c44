"""A job that records the allocator's history itself finds what it expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.histories import HookHistory
from tests.support.training import assert_adds_up

import memlens
from memlens import torch_private

Install = Callable[[HookHistory], HookHistory]


def allocate(count: int) -> None:
    for _ in range(count):
        torch.zeros(2000)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, over: Install) -> HookHistory:
    """The stand-in takes the place of torch's own function, by which jobs record."""
    history = over(HookHistory())
    owner, name = torch_private.job_history_owner()
    monkeypatch.setattr(owner, name, history.record)
    return history


def actions(history: HookHistory, action: str) -> int:
    return sum(entry["action"] == action for entry in history.snapshot()["device_traces"][0])


def test_recording_from_before_goes_on(job: HookHistory, tmp_path: Path) -> None:
    torch.cuda.memory._record_memory_history("all")
    allocate(10)
    with memlens.profile(out=tmp_path / "run") as session:
        allocate(20)
    allocate(5)
    assert actions(job, "alloc") >= 35
    assert job.enabled == "all"
    rank = session.capture.ranks[0]
    assert (rank.blocks.requested_bytes == 8000).sum() == 20
    assert any("the job records" in note for note in rank.coverage.notes)


def test_recording_that_begins_within(job: HookHistory, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        allocate(10)
        torch.cuda.memory._record_memory_history("all")
        allocate(20)
        seen = actions(job, "alloc")
        torch.cuda.memory._record_memory_history(None)
        assert job.enabled == "all", "ours goes on"
        allocate(7)
    assert 20 <= seen < 30
    rank = session.capture.ranks[0]
    assert (rank.blocks.requested_bytes == 8000).sum() == 37
    assert rank.coverage.lost_events == 0
    assert_adds_up(rank)
    assert job.enabled is None


def test_state_alone_becomes_all(job: HookHistory, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run") as session:
        torch.cuda.memory._record_memory_history("state")
        allocate(20)
    assert (session.capture.ranks[0].blocks.requested_bytes == 8000).sum() == 20


def test_the_jobs_ring_may_wrap(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory(ring=400))
    history.record("all")
    with memlens.profile(out=tmp_path / "run") as session:
        for _ in range(30):
            allocate(20)
            current = session._recorder
            assert current is not None
            session._source._rest_until_ns = 0  # type: ignore[attr-defined]
            current.drain()
    rank = session.capture.ranks[0]
    assert rank.coverage.lost_events == 0
    assert (rank.blocks.requested_bytes == 8000).sum() == 600


def test_the_jobs_texts_stay_in_its_history(job: HookHistory, tmp_path: Path) -> None:
    with memlens.profile(out=tmp_path / "run"):
        torch.cuda.memory._record_memory_history("all")
        assert job.set_text is not None
        job.set_text("of the job")
        torch.nn.Linear(40, 40)(torch.zeros(2, 40)).sum().backward()
        entries = job.snapshot()["device_traces"][0]
    texts = {entry["user_metadata"] for entry in entries if entry["action"] == "alloc"}
    assert texts == {"of the job"}
