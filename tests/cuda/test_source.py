"""The CUDA source, over a stand-in for the allocator: real trainings, real hooks, real threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import Any

import pytest
import torch
from tests.support.histories import HookHistory
from tests.support.training import assert_adds_up, assert_sound
from torch import nn

import memlens
from memlens.capture import RankCapture
from memlens.events import Category

Install = Callable[[HookHistory], HookHistory]
WIDTH = 96


def train(steps: int = 4, after_step: Callable[[int], None] = lambda step: None) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 7)
    )
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    losses = []
    for step in range(steps):
        loss = nn.functional.cross_entropy(
            model(torch.randn(33, WIDTH)), torch.randint(0, 7, (33,))
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after_step(step)
    return losses


def record(folder: Path, **options: Any) -> RankCapture:
    with memlens.profile(out=folder, **options) as session:
        train()
    return session.capture.ranks[0]


def told(rank: RankCapture) -> list[tuple[object, ...]]:
    """What is said of each block, in the order of allocation, without times and addresses."""
    return [
        (
            block.category,
            block.certainty,
            block.name,
            block.module,
            block.phase,
            block.step,
            rank.blocks.requested_bytes[number],
        )
        for number, block in enumerate(map(rank.allocation, range(len(rank.blocks.first))))
    ]


def test_says_of_every_block_what_the_cpu_source_says(over: Install, tmp_path: Path) -> None:
    expected = told(record(tmp_path / "cpu", device="cpu"))
    over(HookHistory())
    rank = record(tmp_path / "cuda")
    assert rank.device == "cuda:0"
    assert_sound(rank)
    found = told(rank)
    assert {Category.WEIGHT, Category.GRADIENT, Category.ACTIVATION, Category.OPTIMIZER_STATE} <= {
        row[0] for row in found
    }
    assert found == expected


def test_counts_what_the_allocator_counts_at_every_step(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory())
    ends: list[tuple[int, int]] = []
    with memlens.profile(out=tmp_path / "run") as session:
        train(after_step=lambda step: ends.append((time_ns(), history.allocated_bytes())))
    rank = session.capture.ranks[0]
    assert_sound(rank)
    for time, allocated in ends:
        assert sum(rank.categories_at(time).values()) == allocated > 0


def test_a_training_is_the_same_to_the_bit(over: Install, tmp_path: Path) -> None:
    plain = train()
    over(HookHistory())
    with memlens.profile(out=tmp_path / "run"):
        assert train() == plain


def test_stacks_come_from_the_history(over: Install, tmp_path: Path) -> None:
    over(HookHistory())
    rank = record(tmp_path / "run")
    block = rank.allocations_at()[0]
    assert [(frame.function, frame.file, frame.line) for frame in block.stack] == [
        ("make", "job.py", 7)
    ]


def test_the_ring_is_emptied_before_it_wraps(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory())
    longest = 0

    def look(step: int) -> None:
        nonlocal longest
        longest = max(longest, len(history._trace))

    with memlens.profile(out=tmp_path / "run") as session:
        train(steps=60, after_step=look)
    assert session.events > 3000
    assert longest < session.events / 2
    assert session.capture.ranks[0].coverage.lost_events == 0


def test_a_ring_that_wraps_is_said_so_and_counted(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory(ring=400))
    session = memlens.profile(out=tmp_path / "run")
    ends: list[tuple[int, int]] = []

    def after_step(step: int) -> None:
        assert session._recorder is not None
        if step not in (3, 4):
            session._recorder.drain()
        session._recorder.next_drain_ns = 2**62  # none in between, however slow the machine is
        ends.append((time_ns(), history.allocated_bytes()))

    with session:
        train(steps=8, after_step=after_step)
    rank = session.capture.ranks[0]
    coverage = rank.coverage
    assert not coverage.complete
    assert coverage.lost_events > 200
    assert coverage.blind_ns > 0
    assert coverage.witness_difference_bytes == 0
    assert_adds_up(rank)
    # Before the loss and after it everything is known.
    for step in (1, 2, 6, 7):
        time, allocated = ends[step]
        held = rank.categories_at(time)
        assert sum(held.values()) == allocated
        assert held[Category.WEIGHT] > 0
        assert held[Category.OPTIMIZER_STATE] > held[Category.WEIGHT]
        assert held[Category.UNKNOWN] == 0


def test_what_was_there_before_is_known(over: Install, tmp_path: Path) -> None:
    over(HookHistory())
    model = nn.Linear(WIDTH, WIDTH)
    stray = torch.zeros(5000)
    with memlens.profile(out=tmp_path / "run") as session:
        model(torch.randn(4, WIDTH)).sum().backward()
        del stray
    rank = session.capture.ranks[0]
    assert rank.coverage.witness_difference_bytes == 0
    sizes = {
        block.name: block.size_bytes for block in rank.allocations_at(top=None) if block.preexisting
    }
    assert sizes["weight"] == 4 * WIDTH * WIDTH
    before = rank.blocks.preexisting & (rank.blocks.requested_bytes == 20_000)
    assert before.sum() == 1
    assert rank.blocks.free_ns[before][0] < 2**62, "its free was not seen"


def test_recording_begins_when_the_job_makes_a_context(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory(ready=False))
    with memlens.profile(out=tmp_path / "run") as session:
        torch.zeros(3000)
        history.make_context()
        train()
    rank = session.capture.ranks[0]
    assert rank.peak().categories[Category.WEIGHT] > 0
    assert rank.coverage.witness_difference_bytes == 0
    assert history.enabled is None


def test_a_job_without_cuda_is_told_how_to_record(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory(ready=False))
    with memlens.profile(out=tmp_path / "run") as session:
        train()
    assert history._queued == []
    notes = session.capture.ranks[0].coverage.notes
    assert any("--device cpu" in note for note in notes)


@pytest.mark.parametrize("annotates", [True, False])
def test_the_history_is_left_as_it_was(over: Install, tmp_path: Path, annotates: bool) -> None:
    history = over(HookHistory(annotates=annotates))
    if history.set_text is not None:
        history.set_text("of the job")
    record(tmp_path / "run")
    assert history.enabled is None
    assert len(history._trace) == 0
    assert history.text() == ("of the job" if annotates else "")
    assert history.out_of_memory is None


def test_without_metadata_time_tells_the_place(over: Install, tmp_path: Path) -> None:
    over(HookHistory(annotates=False))
    rank = record(tmp_path / "run")
    assert_adds_up(rank)
    assert rank.coverage.complete
    assert rank.peak().categories[Category.WEIGHT] > 0


def test_pinned_and_device_memory_are_measured(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory())
    history.pinned = 3 << 20
    rank = record(tmp_path / "run")
    gauges = {gauge.what: gauge for gauge in rank.gauges()}
    assert gauges["pinned host memory"].peak_bytes == 3 << 20
    assert gauges["device memory in use"].last_bytes >= 500 << 20


def test_nothing_is_asked_of_a_device_while_a_graph_is_captured(
    over: Install, tmp_path: Path
) -> None:
    history = over(HookHistory())
    history.capturing = True
    assert record(tmp_path / "run").gauges() == ()


def test_several_sessions_in_a_row(over: Install, tmp_path: Path) -> None:
    over(HookHistory())
    for number in itertools.count():
        rank = record(tmp_path / f"run{number}")
        assert_sound(rank)
        if number == 2:
            break
