"""Both ways of recording the CPU: the allocator hook, and torch's profiler where none is compiled."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.support.training import Outcome, Recording, now, run_both

import memlens
from memlens.errors import SourceError, UsageError
from memlens.events import Category
from memlens.recording.names import Names
from memlens.sources import allocator_hook
from memlens.sources.cpu import make_cpu_source
from memlens.sources.native import build
from memlens.sources.torch_profiler import TorchProfilerSource

WAYS = ("hook", "profiler")
MEGABYTE = 1 << 20


def train(recording: Recording) -> Outcome:
    """Three steps of AdamW on two layers, with a moment after each part of a step."""
    outcome = Outcome()
    with recording():
        model = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Linear(48, 16))
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        outcome.moments["init"] = now()
        for step in range(3):
            loss = model(torch.randn(8, 32)).square().mean()
            outcome.moments[f"forward {step}"] = now()
            loss.backward()
            outcome.moments[f"backward {step}"] = now()
            optimizer.step()
            outcome.moments[f"step {step}"] = now()
            optimizer.zero_grad()
            outcome.losses.append(loss.item())
            del loss
    outcome.models.append(model)
    outcome.values += list(model.parameters())
    return outcome


def test_both_ways_see_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for way in WAYS:
        monkeypatch.setenv("MEMLENS_CPU_SOURCE", way)
        recorded = run_both(train, tmp_path / way)
        found[way] = {moment: recorded.at(moment) for moment in recorded.outcome.moments}
    assert found["hook"] == found["profiler"]
    parameters = 4 * (32 * 48 + 48 + 48 * 16 + 16)
    assert found["hook"]["init"] == {Category.WEIGHT: parameters}
    assert found["hook"]["step 2"][Category.OPTIMIZER_STATE] == 2 * parameters + 4 * 4


@pytest.mark.parametrize("way", WAYS)
def test_memory_from_before_and_after_the_session(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks outlive the session they were made in, and are found and followed by the next one."""
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", way)
    before = torch.zeros(MEGABYTE, dtype=torch.uint8)
    with memlens.profile(out=tmp_path / "first") as first:
        during = torch.zeros(2 * MEGABYTE, dtype=torch.uint8)
        del before
        freed_ns = now()
    with memlens.profile(out=tmp_path / "second") as second:
        found_ns = now()
        del during
        gone_ns = now()
    rank = first.capture.ranks[0]
    sizes = [block.size_bytes for block in rank.allocations_at(freed_ns, top=None)]
    assert 2 * MEGABYTE in sizes
    assert MEGABYTE not in sizes
    rank = second.capture.ranks[0]
    (block,) = (b for b in rank.allocations_at(found_ns, None) if b.size_bytes == 2 * MEGABYTE)
    assert block.preexisting
    difference = sum(rank.categories_at(found_ns).values()) - sum(
        rank.categories_at(gone_ns).values()
    )
    assert difference == 2 * MEGABYTE
    assert rank.coverage.complete
    # After the session the allocator of torch is in place again, and nothing follows its blocks.
    after = torch.zeros(3 * MEGABYTE, dtype=torch.uint8)
    del after
    assert second.capture.ranks[0].events == rank.events


def test_the_hook_sees_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "hook")
    kept: list[torch.Tensor] = []

    def work() -> None:
        kept.append(torch.zeros(MEGABYTE, dtype=torch.uint8))

    def drop() -> None:
        kept.clear()

    with memlens.profile(out=tmp_path / "run") as session:
        start_ns = now()
        run_in_thread(work)
        made_ns = now()
        kept.append(torch.zeros(2 * MEGABYTE, dtype=torch.uint8))
        both_ns = now()
        run_in_thread(drop)
        gone_ns = now()
    rank = session.capture.ranks[0]
    totals = [
        sum(rank.categories_at(moment).values()) for moment in (start_ns, made_ns, both_ns, gone_ns)
    ]
    assert [total - totals[0] for total in totals] == [0, MEGABYTE, 3 * MEGABYTE, 0]
    assert rank.coverage.complete


def run_in_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_the_hook_and_many_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks pass between threads; in the end everything is given back, and nothing is lost."""
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "hook")

    def churn(seed: int) -> torch.Tensor:
        blocks = [torch.empty(seed + index) for index in range(1, 400)]
        for index in range(0, 399, 2):
            blocks[index] = torch.empty(index + 1)
        return blocks[-1]

    with memlens.profile(out=tmp_path / "run") as session:
        start_ns = now()
        with ThreadPoolExecutor(8) as pool:
            last = list(pool.map(churn, range(64)))
            last.clear()
        end_ns = now()
    rank = session.capture.ranks[0]
    assert rank.categories_at(start_ns) == rank.categories_at(end_ns)
    assert rank.coverage.lost_events == 0
    assert rank.coverage.witness_difference_bytes == 0
    assert rank.events >= 64 * 2 * 598


def test_stacks_name_the_very_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an operator, which calls no Python function."""
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "hook")
    one = torch.ones(MEGABYTE // 4)
    with memlens.profile(out=tmp_path / "run") as session:
        two = one + one
        line = test_line() - 1
        at_ns = now()
    rank = session.capture.ranks[0]
    (block,) = (b for b in rank.allocations_at(at_ns, None) if not b.preexisting)
    assert two.nbytes == block.size_bytes
    assert (block.stack[-1].file, block.stack[-1].line) == (__file__, line)
    assert block.stack[-1].function == "test_stacks_name_the_very_line"


def test_line() -> int:
    """Line of the caller."""
    import sys

    return sys._getframe(1).f_lineno


test_line.__test__ = False  # type: ignore[attr-defined]


def test_the_hook_works_beside_a_profiler_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "hook")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.profiler.profile(activities=activities, profile_memory=True) as profiler,
        memlens.profile(out=tmp_path / "run") as session,
    ):
        kept = torch.zeros(MEGABYTE, dtype=torch.uint8)
        kept_ns = now()
    rank = session.capture.ranks[0]
    assert kept.nbytes in [block.size_bytes for block in rank.allocations_at(kept_ns, None)]
    assert rank.coverage.blind_ns == 0
    seen = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert seen >= MEGABYTE


def without_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As on a machine that has no compiler and never had one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def fresh_library() -> object:
    """Forget the compiled hook before and after."""
    allocator_hook._library.cache_clear()
    yield
    allocator_hook._library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_without_a_compiler_the_profiler_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(monkeypatch, tmp_path)
    monkeypatch.delenv("MEMLENS_CPU_SOURCE", raising=False)
    recorded = run_both(train, tmp_path / "run")
    notes = recorded.rank.coverage.notes
    assert any("no C++ compiler" in note for note in notes)
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "hook")
    with pytest.raises(SourceError, match=r"no C\+\+ compiler found .* apt install g\+\+"):
        make_cpu_source(Names(), stack_depth=0)


@pytest.mark.usefixtures("fresh_library")
def test_a_compiler_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'hook.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(SourceError, match="no such thing") as caught:
        build.build_hook()
    assert "\n" not in str(caught.value)
    assert isinstance(make_cpu_source(Names(), stack_depth=0), TorchProfilerSource)


def test_the_hook_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:  # as ranks that start together
        first, second = pool.map(lambda _: build.build_hook(), range(2))
    assert first == second
    assert os.listdir(first.parent) == [first.name]
    before = first.stat().st_mtime_ns
    time.sleep(0.01)
    assert build.build_hook().stat().st_mtime_ns == before


def test_an_unknown_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", "magic")
    with pytest.raises(UsageError, match="must be auto, hook or profiler, not 'magic'"):
        make_cpu_source(Names(), stack_depth=0)
