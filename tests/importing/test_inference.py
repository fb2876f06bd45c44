"""What is concluded of blocks, on histories that the allocator's model writes."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.training import assert_adds_up
from tests.support.written_job import (
    BACKWARD,
    FORWARD,
    MAIN,
    MAKING,
    MIB,
    STEP,
    ZERO,
    Job,
    categories,
)

import memlens
from memlens.importing.convert import import_snapshots
from memlens.options import Options


def test_what_was_there_is_told_by_its_sizes(tmp_path: Path) -> None:
    job = Job()
    sizes = [3 * MIB, 3 * MIB, 7 * MIB]
    job.malloc(MAIN, *sizes, *sizes, *sizes)  # weights and the two moments
    other = job.malloc(MAIN, 9 * MIB)
    job.forget()
    kept = job.malloc(FORWARD, 2 * MIB)
    gradients = job.malloc(BACKWARD, *sizes)
    job.free(BACKWARD, kept)
    job.free(STEP, job.malloc(STEP, 4 * MIB))
    job.free(ZERO, gradients)
    assert other
    (rank,) = job.imported(tmp_path).ranks
    found = categories(rank)
    assert found["weight"] == [3, 3, 7]
    assert found["optimizer_state"] == [3, 3, 3, 3, 7, 7]
    assert found["unknown"] == [9]


def test_what_does_not_come_in_sets_stays_unknown(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAIN, *[3 * MIB] * 5)  # two weights, and what else?
    job.forget()
    kept = job.malloc(FORWARD, 2 * MIB)
    gradients = job.malloc(BACKWARD, 3 * MIB, 3 * MIB)
    job.free(BACKWARD, kept)
    job.free(ZERO, gradients)
    (rank,) = job.imported(tmp_path).ranks
    found = categories(rank)
    assert found["weight"] == [3, 3]
    assert found["unknown"] == [3, 3, 3]


def test_gradients_that_were_there_are_told_by_their_end(tmp_path: Path) -> None:
    job = Job()
    job.malloc(MAIN, 3 * MIB)
    gradients = job.malloc(MAIN, 3 * MIB)
    job.forget()
    job.free(ZERO, gradients)
    job.malloc(FORWARD, 2 * MIB)
    (rank,) = job.imported(tmp_path).ranks
    assert categories(rank)["gradient"] == [3]
    assert categories(rank)["weight"] == [3]


def test_without_stacks_nothing_is_guessed(tmp_path: Path) -> None:
    job = Job()
    nothing: list[dict[str, Any]] = []
    job.malloc(nothing, 3 * MIB)
    kept = job.malloc(nothing, 2 * MIB)
    job.malloc(nothing, 3 * MIB)
    job.free(nothing, kept)
    (rank,) = job.imported(tmp_path).ranks
    assert list(categories(rank)) == ["unknown"]
    assert any("no stacks" in note for note in rank.coverage.notes)


def test_a_step_that_takes_no_memory_is_a_step(tmp_path: Path) -> None:
    """As SGD's is not. What `zero_grad` gives back are gradients, also right after backward."""
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    for _ in range(3):
        kept = job.malloc(FORWARD, 2 * MIB)
        gradients = job.malloc(BACKWARD, 3 * MIB)
        job.free(BACKWARD, kept)
        job.free(ZERO, gradients)
    (rank,) = job.imported(tmp_path).ranks
    assert [step.step for step in rank.steps()] == [0, 1, 2]
    assert categories(rank) == {"weight": [3], "activation": [2] * 3, "gradient": [3] * 3}


def test_a_step_that_torch_has_noted(tmp_path: Path) -> None:
    """Two optimizers are one step; notes of what was before the history are none."""
    job = Job()
    job.malloc(MAKING, 3 * MIB)
    noted = [(1, 2)]
    clock = job.history.allocators[0]._clock
    for _ in range(2):
        kept = job.malloc(FORWARD, 2 * MIB)
        gradients = job.malloc(BACKWARD, 3 * MIB)
        job.free(BACKWARD, kept)
        for _ in range(2):
            begin = clock()
            noted.append((begin, clock()))
            while clock() <= noted[-1][1]:
                pass
        job.free(MAIN, gradients)
    notes = [
        {"stage": stage, "name": "Optimizer.step#SGD.step", "device": 0, "time_us": time_us}
        for begin, end in noted
        for stage, time_us in (("START", begin), ("END", end))
    ]
    (rank,) = job.imported(tmp_path, external_annotations=notes).ranks
    assert rank.segments.step_start_ns.keys() == {1, 2}
    assert categories(rank)["gradient"] == [3, 3]


def test_several_devices(tmp_path: Path) -> None:
    job = Job(devices=3)
    for device in (0, 2):
        job.malloc(MAKING, (device + 1) * MIB, device=device)
        job.malloc(FORWARD, (device + 4) * MIB, device=device)
    capture = job.imported(tmp_path)
    assert [rank.device for rank in capture.ranks] == ["cuda:0", "cuda:2"]
    assert [categories(rank) for rank in capture.ranks] == [
        {"weight": [1], "activation": [4]},
        {"weight": [3], "activation": [6]},
    ]


@pytest.mark.parametrize("shift_us", [0, -5])
def test_the_allocators_order_holds_where_times_do_not_tell_it(
    tmp_path: Path, shift_us: int
) -> None:
    job = Job()
    for _ in range(20):
        job.free(MAIN, job.malloc(MAIN, 3 * MIB))
    content = job.history.snapshot()
    for number, entry in enumerate(content["device_traces"][0]):
        entry["time_us"] = 10**6 + (shift_us if number % 2 else 0)
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(content))
    run = import_snapshots([tmp_path / "a.pickle"], Options(out=tmp_path / "run"))
    (rank,) = memlens.load(run).ranks
    assert_adds_up(rank)
    assert rank.coverage.lost_events == 0
    assert rank.peak().allocated_bytes == 3 * MIB
    assert Counter(rank.blocks.time_ns[1:] > rank.blocks.time_ns[:-1]) == {True: 39}
