"""What is said while a run grows is what the whole run says of the same moment, to the byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from tests.support.growing import grow, in_batches
from tests.support.jobs import run_memlens, run_plain, write_script
from tests.support.plan_jobs import TINY

import memlens
from memlens.answers import Step
from memlens.events import Category
from memlens.live import window
from memlens.live.follow import DeviceState, RankFollower

BEGIN = """
import sys
import torch
import memlens
import memlens.recording.recorder as recorder
recorder.DRAIN_NS, recorder.MIN_DRAIN_NS = 1_000_000, 1_000  # many small batches

torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(6)))
session = memlens.profile(out="run").start()
"""

ORDINARY = """
optimizer = torch.optim.AdamW(model.parameters())
for step in range(8):
    optimizer.zero_grad(set_to_none=step % 2 == 0)
    model(torch.randn(16, 32)).sum().backward()
    optimizer.step()
"""

UNUSUAL = """
late = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
optimizer = torch.optim.AdamW(model.parameters())
hidden, kept = torch.zeros(4, 32), []
for _ in range(30):  # long before the first step
    with torch.no_grad():
        hidden = model(torch.randn(4, 32) + hidden)
for step in range(8):
    for _ in range(5):  # gradients are accumulated, and something goes on from step to step
        model(torch.randn(4, 32) + hidden.detach()).sum().backward()
        hidden = model(torch.randn(4, 32)).detach()
    kept.append(torch.zeros(1000))  # a leak
    if step == 5:
        late(torch.randn(2, 64))
    optimizer.step()
    optimizer.zero_grad()
    if step == 3 and sys.argv[1] == "profiler":  # the source is blind for a while
        with torch.profiler.profile():
            model(torch.randn(4, 32)).sum().backward()
for _ in range(30):
    with torch.no_grad():
        hidden = model(torch.randn(4, 32) + hidden)
"""

TOLD_LATE = """
optimizer = torch.optim.AdamW(model.parameters())
table = None
for step in range(10):
    model(torch.randn(16, 32)).sum().backward()
    optimizer.step()
    if step == 1:
        table = torch.zeros(1000)
    if step == 6:
        model.register_buffer("table", table)
"""


Record = Callable[..., Path]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Runs a job and gives its capture; each job once."""
    made: dict[tuple[str, str], Path] = {}

    def of(job: str, source: str = "hook") -> Path:
        if (job, source) not in made:
            folder = tmp_path_factory.mktemp("job")
            write_script(folder / "train.py", BEGIN + job + "\nsession.stop()\n")
            variables = {"MEMLENS_CPU_SOURCE": source}
            answer = run_plain("python", "train.py", source, cwd=folder, env=variables)
            assert answer.returncode == 0, answer.stderr
            made[job, source] = folder / "run"
        return made[job, source]

    return of


def looks(
    run: Path, copy: Path, every: int = 1
) -> Iterator[tuple[DeviceState, memlens.RankCapture]]:
    """What is said after each look, and what a reader of the same bytes finds."""
    follower = None
    for folder in grow(run, copy, every):
        follower = follower or RankFollower(folder)
        follower.poll()
        assert not follower.poll()  # all that is there has been read
        rank = memlens.load(copy).ranks[0]
        for state in follower.states:
            yield state, rank


def check(state: DeviceState, rank: memlens.RankCapture) -> None:
    """All that is said of a moment."""
    last_ns = rank.last_event_ns
    assert last_ns is not None
    timeline = rank.timeline()
    now = state.now
    assert now.time_ns == last_ns
    assert now.allocated_bytes == timeline.allocated_bytes[-1]
    assert now.categories == rank.categories_at(last_ns)
    place = rank.place_at(last_ns)
    assert (now.step, now.phase, now.module) == (place.step, place.phase, place.module)
    slack = rank.slack_at(last_ns)
    assert now.reserved_bytes == (None if slack is None else slack.reserved_bytes)
    assert state.peak == rank.peak()
    steps = {step.step: step for step in rank.steps()}
    assert state.step is None or state.step == steps[state.step.step]
    assert all(steps[number].peak_bytes == peak for number, peak in state.trend)


@pytest.mark.parametrize("most_rows", [200_000, 400], ids=["by steps", "within steps"])
@pytest.mark.parametrize("source", ["hook", pytest.param("profiler", marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", [ORDINARY, UNUSUAL], ids=["ordinary", "unusual"])
def test_every_look_is_exact(
    job: str,
    source: str,
    most_rows: int,
    record: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "MOST_ROWS", most_rows)
    run = record(job, source)
    seen: dict[int, Step] = {}
    count = 0
    for state, rank in looks(run, tmp_path / "copy", every=1 if job is ORDINARY else 6):
        check(state, rank)
        count += 1
        if state.step is not None:
            seen[state.step.step] = state.step
    assert count > 10
    # On a busy machine a batch may hold a whole step, which is then not seen.
    assert len(seen) > 4
    assert max(seen) == 7
    # And what was said of a step at the time is what the whole run says of it.
    whole = {step.step: step for step in memlens.load(run).ranks[0].steps()}
    assert seen == {number: whole[number] for number in seen}


def test_the_window_does_not_grow(record: Record, tmp_path: Path) -> None:
    recorded = record(ORDINARY.replace("range(8)", "range(60)"))
    run = in_batches(recorded, tmp_path / "run", rows=25)
    follower = None
    rows = []
    for folder in grow(run, tmp_path / "copy", every=4):
        follower = follower or RankFollower(folder)
        follower.poll()
        rows.append(follower.rows)
    events = memlens.load(run).ranks[0].events
    assert events > 5_000
    assert max(rows) < events // 5
    assert rows[-1] < 2 * max(rows[:10])


def test_what_is_told_late_counts_from_then_on(record: Record, tmp_path: Path) -> None:
    """The one difference to the whole run: categories of steps that were settled by then."""
    run = record(TOLD_LATE)
    seen: dict[int, Step] = {}
    for state, rank in looks(run, tmp_path / "copy"):
        assert state.now.allocated_bytes == rank.timeline().allocated_bytes[-1]
        assert state.now.categories == rank.categories_at(state.now.time_ns)
        assert state.peak.allocated_bytes == rank.peak().allocated_bytes
        if state.step is not None:
            seen[state.step.step] = state.step
    whole = {step.step: step for step in memlens.load(run).ranks[0].steps()}
    differ = set()
    for number, step in seen.items():
        assert step.peak_bytes == whole[number].peak_bytes
        assert step.end_bytes == whole[number].end_bytes
        if step.categories != whole[number].categories:
            differ.add(number)
            change = {
                name: size - step.categories[name]
                for name, size in whole[number].categories.items()
                if size != step.categories[name]
            }
            assert change[Category.WEIGHT] == 4_000
            assert sum(change.values()) == 0
    assert differ
    assert differ <= {2, 3, 4, 5, 6}


def test_a_stream_that_is_cut_within_a_batch(record: Record, tmp_path: Path) -> None:
    """A look may come at any byte."""
    run = record(ORDINARY)
    copy = tmp_path / "copy"
    states = []
    for folder in grow(run, copy, every=5):
        stream = folder / "events.arrow"
        whole = stream.read_bytes()
        stream.write_bytes(whole[:-7])
        follower = RankFollower(folder)
        follower.poll()
        early = follower.states
        stream.write_bytes(whole)
        follower.poll()
        rank = memlens.load(copy).ranks[0]
        check(follower.states[0], rank)
        states.append((early, follower.states))
    assert any(early != late for early, late in states)


def body_of_a_batch(stream: bytes) -> tuple[int, int]:
    """Where the columns of the second batch lie; a length that is wrong would only look unfinished."""
    buffer = pyarrow.BufferReader(stream)
    messages = pyarrow.ipc.MessageReader.open_stream(buffer)
    for _ in range(3):  # the schema is the first
        body = messages.read_next_message().body
    return buffer.tell() - body.size, buffer.tell()


def test_flipped_bits_are_an_error(record: Record, tmp_path: Path) -> None:
    run = record(ORDINARY)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    stream = next(copy.glob("*/events.arrow"))
    data = bytearray(stream.read_bytes())
    begin, end = body_of_a_batch(bytes(data))
    data[begin:end] = bytes(byte ^ 1 for byte in data[begin:end])
    stream.write_bytes(data)
    follower = RankFollower(stream.parent)
    with pytest.raises(memlens.MemlensError, match="damaged capture"):
        for _ in range(3):
            follower.poll()


@pytest.mark.slow
def test_memory_that_an_allocator_takes_in_advance(tmp_path: Path) -> None:
    """CUDA's history does not tell how large blocks are; that is worked out from what lies free."""
    write_script(tmp_path / "train.py", TINY)
    words = ("plan", "--gpu", "a100-40gb", "--steps", "6", "--out", "plan", "train.py")
    answer = run_memlens(*words, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    run = in_batches(tmp_path / "plan" / "run", tmp_path / "run", rows=20)
    count = 0
    for state, rank in looks(run, tmp_path / "copy"):
        check(state, rank)
        assert state.now.reserved_bytes
        count += 1
    assert count > 10
    assert state.step is not None
    assert state.step.step >= 4
