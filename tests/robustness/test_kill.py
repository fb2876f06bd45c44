"""`kill -9` at any moment: the capture opens, adds up, and lacks a second at most."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.support.jobs import STEPS, start_memlens, write_script

import memlens
from memlens.capture import RankCapture
from memlens.events import Category

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AT_MOST_MISSING_NS = 1_000_000_000
AT_ONCE = 2

# Each tells on stdout when it last allocated something, so that no file of ours is its only witness.
TINY = (
    STEPS
    + """
import os, time
while True:
    train(1)
    os.write(1, b"%d\\n" % time.time_ns())
"""
)
LONG = """
import os, time, torch
kept = []
while True:  # no module, no backward, no optimizer
    x = torch.ones(100)
    for _ in range(1000):
        x = x * 1.0001
    kept.append(x)
    os.write(1, b"%d\\n" % time.time_ns())
"""
BUSY_THREAD = """
import os, threading, time, torch
def count():
    while True:
        sum(range(1000))
threading.Thread(target=count, daemon=True).start()
model = torch.nn.Linear(64, 64)
while True:
    with torch.no_grad():
        model(torch.ones(8, 64))
    os.write(1, b"%d\\n" % time.time_ns())
    time.sleep(0.01)
"""
MODEL_IN_THE_MAKING = """
import os, time, torch
layers = torch.nn.ModuleList()
while True:
    layers.append(torch.nn.Linear(64, 64))
    os.write(1, b"%d\\n" % time.time_ns())
    time.sleep(0.001)
"""


@dataclass(frozen=True)
class Killed:
    """What is known of one killed job."""

    run: Path
    times_ns: list[int]
    """When it did something, as it said itself."""


def kill_one(folder: Path, number: int, words: list[str], lives_s: float) -> Killed:
    run = folder / f"run-{number}"
    process = start_memlens("run", "--out", str(run), *words, cwd=folder)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first, process.communicate()[1]
    drain = ThreadPoolExecutor(1).submit(process.stdout.read)
    time.sleep(lives_s)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    rest = drain.result(60)
    process.stdout.close()
    if process.stderr is not None:
        process.stderr.close()
    times = [int(line) for line in (first + rest).splitlines()[:-1] if line.isdigit()]
    return Killed(run, times)


def kill_many(folder: Path, words: list[str], lives_s: Sequence[float]) -> list[Killed]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(
            pool.map(lambda item: kill_one(folder, item[0], words, item[1]), enumerate(lives_s))
        )


def moments(count: int, most_s: float, seed: int) -> list[float]:
    """Random lifetimes, one within each of `count` equal parts of the time."""
    chance = random.Random(seed)
    return [most_s * (part + chance.random()) / count for part in range(count)]


def descendants(pid: int) -> list[int]:
    """A process and all that it has started."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, path.read_text().split())
    return [pid, *(found for child in children for found in descendants(child))]


def assert_sound(killed: Killed) -> RankCapture:
    """It opens, says that it is not whole, and every event's categories add up."""
    [rank] = memlens.load(killed.run).ranks
    assert not rank.coverage.complete
    assert [text[:44] for text in rank.coverage.problems] == [
        "recording ended without being closed (the pr"
    ]
    assert rank.coverage.lost_events == 0
    assert rank.coverage.witness_difference_bytes == 0
    timeline = rank.timeline()
    total = np.sum([timeline.categories[category] for category in Category], axis=0)
    np.testing.assert_array_equal(total, timeline.allocated_bytes)
    assert all(int(held.min(initial=0)) >= 0 for held in timeline.categories.values())
    assert sum(rank.peak().categories.values()) == rank.peak().allocated_bytes
    for step in rank.steps():
        assert sum(step.categories.values()) == step.peak_bytes
    return rank


def assert_little_is_missing(killed: Killed, rank: RankCapture) -> None:
    last_seen = int(rank.timeline().time_ns[-1]) if rank.events else 0
    before_it = [moment for moment in killed.times_ns if moment > last_seen]
    missing_ns = killed.times_ns[-1] - min(before_it, default=killed.times_ns[-1])
    assert missing_ns <= AT_MOST_MISSING_NS, f"{missing_ns} ns are missing"


def check(folder: Path, script: str, count: int, most_s: float, seed: int) -> None:
    write_script(folder / "train.py", script)
    for one in kill_many(folder, ["train.py"], moments(count, most_s, seed)):
        assert_little_is_missing(one, assert_sound(one))


def test_a_few_kills(tmp_path: Path) -> None:
    check(tmp_path, TINY, count=4, most_s=2, seed=4)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    check(tmp_path, TINY, count=20, most_s=3, seed=20)


@pytest.mark.parametrize(
    "script",
    [
        LONG,
        pytest.param(BUSY_THREAD, marks=pytest.mark.slow),
        pytest.param(MODEL_IN_THE_MAKING, marks=pytest.mark.slow),
    ],
    ids=["tensors", "thread", "modules"],
)
def test_kills_where_nothing_drains_but_the_heartbeat(script: str, tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", script)
    # Long enough for several beats to have been due.
    for one in kill_many(tmp_path, ["train.py"], [2.5, 2.8]):
        rank = assert_sound(one)
        assert_little_is_missing(one, rank)
        # The heartbeat has drained: it cannot be that there was nothing to miss.
        assert int(rank.timeline().time_ns[-1]) - one.times_ns[0] > 1_000_000_000


@pytest.mark.slow
def test_kills_at_the_start(tmp_path: Path) -> None:
    """From before Python runs to the first steps: no folder, half a folder, no events."""
    write_script(tmp_path / "train.py", STEPS + "train(10**9)")

    def kill(number: int) -> Path:
        run = tmp_path / f"run-{number}"
        process = start_memlens("run", "--out", str(run), "train.py", cwd=tmp_path)
        time.sleep(0.1 + 0.15 * number)
        process.kill()
        process.communicate()
        return run

    def opens(run: Path) -> bool:
        if not list(run.glob("*/*.arrow")):
            return False
        [rank] = memlens.load(run).ranks
        assert not rank.coverage.complete
        assert rank.coverage.lost_events == 0
        return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        opened = sum(map(opens, pool.map(kill, range(14))))
    number = 14
    while not opened:  # on a busy machine none has come that far
        number *= 2
        assert number < 500
        opened += opens(kill(number))


@pytest.mark.slow
def test_kills_of_the_example(tmp_path: Path) -> None:
    script = EXAMPLES / "language_model.py"
    words = [str(script), "--steps", "100000", "--batch", "2", "--seq", "64"]
    for one in kill_many(tmp_path, words, moments(4, 6, seed=3)):
        assert_sound(one)


@pytest.mark.slow
def test_kills_of_two_ranks(tmp_path: Path) -> None:
    """Each dies at a place of its own."""
    words = ["torchrun", "--standalone", "--nproc-per-node", "2", str(EXAMPLES / "ddp.py")]
    process = start_memlens(
        "run", "--out", "run", "--", *words, "--steps", "100000", "--batch", "2", "--seq", "64",
        cwd=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while sum(path.stat().st_size > 20_000 for path in tmp_path.glob("run/*/events.arrow")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert capture.problems == ()
    for rank in capture.ranks:
        assert not rank.coverage.complete
        assert rank.coverage.lost_events == 0
        timeline = rank.timeline()
        total = np.sum([timeline.categories[category] for category in Category], axis=0)
        np.testing.assert_array_equal(total, timeline.allocated_bytes)
