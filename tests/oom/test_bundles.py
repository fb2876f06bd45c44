"""A request fails in the middle of a training: what is on disk by the time the job hears of it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.histories import HookHistory
from tests.support.training import assert_adds_up
from torch import nn

import memlens
from memlens.answers import Part
from memlens.capture import RankCapture
from memlens.cli import cli
from memlens.disk.format import read_json, write_json
from memlens.disk.oom import write_bundle
from memlens.errors import UsageError
from memlens.events import Category, Phase
from memlens.recording import session as session_module

Install = Callable[[HookHistory], HookHistory]
GIB = 2**30
WIDTH = 64
ASKED, TOTAL, FREE = 3 * GIB, 80 * GIB, GIB


class Greedy(nn.Module):
    """Asks for too much in its third call."""

    def __init__(self, history: HookHistory) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.history = history
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y: torch.Tensor = self.inner(x)
        if self.calls == 3:
            assert self.history.out_of_memory is not None
            self.history.out_of_memory(0, ASKED, TOTAL, FREE)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return y


def train(history: HookHistory, at_failure: Callable[[], None] = lambda: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Greedy(history), nn.Linear(WIDTH, 5))
    flat, end = torch.zeros(3 * WIDTH), 0
    for name, parameter in model.named_parameters():
        if "bias" in name:  # these share a storage
            begin, end = end, end + parameter.numel()
            parameter.data = flat[begin:end].copy_(parameter.detach())
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for _ in range(4):
        try:
            loss = model(torch.randn(20, WIDTH)).square().mean()
        except torch.OutOfMemoryError:
            at_failure()
            raise
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(run_folder: Path, history: HookHistory, **options: Any) -> RankCapture:
    with (
        pytest.raises(torch.OutOfMemoryError),
        memlens.profile(out=run_folder, **options) as session,
    ):
        train(history)
    return session.capture.ranks[0]


def test_a_bundle_is_there_before_the_exception(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory())
    found: list[Path] = []
    with (
        pytest.raises(torch.OutOfMemoryError),
        memlens.profile(out=tmp_path / "run") as session,
    ):
        train(history, lambda: found.extend(tmp_path.glob("run/*/oom*.json")))
    assert [path.name for path in found] == ["oom.json"]
    rank = session.capture.ranks[0]
    (event,) = rank.out_of_memory
    assert (event.limit_bytes, event.stream) == (None, 0)
    assert (event.requested_bytes, event.device_total_bytes, event.device_free_bytes) == (
        ASKED,
        TOTAL,
        FREE,
    )
    assert event.step == 2
    assert event.stack[-1].function == "forward"
    assert event.allocated_bytes == sum(rank.categories_at(event.time_ns).values())
    place = rank.place_at(event.time_ns)
    assert (place.step, place.phase, place.module) == (2, Phase.FORWARD, "1")


def test_the_report_explains_it(
    over: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", over(HookHistory()))
    capsys.readouterr()
    cli(["report", str(tmp_path / "run")], standalone_mode=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "step 2, forward, in 1: 3.00 GiB more were asked for" in out
    assert "test_bundles.py:" in out
    assert "cuda:0 has 80.00 GiB" in out
    assert "2.00 GiB short, even if all were in one piece" in out
    cli(["report", str(tmp_path / "run"), "--json"], standalone_mode=False)
    (told,) = json.loads(capsys.readouterr().out)["ranks"][0]["out_of_memory"]
    assert told["obstacle"] == "size"
    assert told["missing_bytes"] == told["short_bytes"] == 2 * GIB
    assert sum(told["categories"].values()) == told["allocated_bytes"]


def test_a_library_that_tries_again_with_less_is_one_event(over: Install, tmp_path: Path) -> None:
    history = over(HookHistory())
    with memlens.profile(out=tmp_path / "run") as session:
        nn.Linear(WIDTH, WIDTH)(torch.zeros(3, WIDTH))
        assert history.out_of_memory is not None
        for asked in (ASKED, ASKED // 2, ASKED // 4):
            history.out_of_memory(0, asked, TOTAL, FREE)
        history.out_of_memory(0, ASKED + 1, TOTAL, FREE)
    assert [event.requested_bytes for event in session.capture.ranks[0].out_of_memory] == [
        ASKED,
        ASKED + 1,
    ]


def test_the_limit_is_not_taken_for_the_devices_total(over: Install, tmp_path: Path) -> None:
    # Where set_per_process_memory_fraction was called, torch tells the limit.
    history = over(HookHistory())
    with memlens.profile(out=tmp_path / "run") as session:
        nn.Linear(WIDTH, WIDTH)(torch.zeros(3, WIDTH))
        assert history.out_of_memory is not None
        history.out_of_memory(0, ASKED, TOTAL // 2, 4 * GIB)
    (event,) = session.capture.ranks[0].out_of_memory
    assert (event.device_total_bytes, event.limit_bytes) == (TOTAL, TOTAL // 2)


def test_threads_that_fail_at_the_same_moment_have_a_bundle_each(
    over: Install, tmp_path: Path
) -> None:
    history = over(HookHistory())
    threads = 6
    start = threading.Barrier(threads)

    def ask(number: int) -> None:
        assert history.out_of_memory is not None
        start.wait()
        history.out_of_memory(0, ASKED + number, TOTAL, FREE)

    with memlens.profile(out=tmp_path / "run") as session:
        nn.Linear(WIDTH, WIDTH)(torch.zeros(3, WIDTH)).sum().backward()
        asking = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    rank = session.capture.ranks[0]
    asked = [event.requested_bytes for event in rank.out_of_memory]
    assert sorted(filter(None, asked)) == [ASKED + number for number in range(threads)]
    assert rank.coverage.problems == ()
    assert_adds_up(rank)


def alive_at_end(
    rank: RankCapture, time_ns: int
) -> Counter[tuple[Category, str, int, tuple[Part, ...]]]:
    return Counter(
        (block.category, block.name, block.size_bytes, block.parts)
        for block in rank.allocations_at(time_ns, top=None)
    )


def test_oom_only_writes_what_a_full_capture_knows_of_the_end(
    over: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = over(HookHistory())
    full = run(tmp_path / "full", history)
    history.__exit__()
    monkeypatch.setattr(session_module, "TAIL_EVENTS", 20)
    monkeypatch.setattr(session_module, "MOST_TAIL_ROWS", 100)
    monkeypatch.setattr("memlens.recording.recorder.DRAIN_NS", 0)
    monkeypatch.setattr("memlens.recording.recorder.MIN_DRAIN_NS", 0)
    tail = run(tmp_path / "tail", over(HookHistory()), oom_only=True)
    assert tail.coverage.problems == ()
    assert tail.coverage.witness_difference_bytes == 0
    assert_adds_up(tail)
    assert tail.events < full.events
    (event,) = tail.out_of_memory
    (expected,) = full.out_of_memory
    alive = alive_at_end(tail, event.time_ns)
    assert alive == alive_at_end(full, expected.time_ns)
    assert [len(parts) for _, _, _, parts in alive if parts] == [3]
    assert tail.place_at(event.time_ns) == full.place_at(expected.time_ns)
    assert tail.categories_at(event.time_ns)[Category.OPTIMIZER_STATE] > 0


def test_oom_only_writes_nothing_when_nothing_fails(over: Install, tmp_path: Path) -> None:
    over(HookHistory())
    model = nn.Linear(WIDTH, WIDTH)
    with memlens.profile(out=tmp_path / "run", oom_only=True):
        model(torch.zeros(2, WIDTH)).sum().backward()
    assert list(tmp_path.iterdir()) == []


def test_oom_only_without_a_gpu_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="there is no CUDA here"):
        memlens.profile(out=tmp_path / "run", oom_only=True).start()
    with pytest.raises(UsageError, match="--device cuda or auto"):
        memlens.profile(out=tmp_path / "run", oom_only=True, device="cpu")


def test_other_ranks_write_what_they_hold(over: Install, tmp_path: Path) -> None:
    over(HookHistory())
    model = nn.Linear(WIDTH, WIDTH)
    with memlens.profile(out=tmp_path / "run") as session:
        model(torch.zeros(2, WIDTH)).sum().backward()
        assert session.run is not None
        (session.run / "out-of-memory").write_text("3\n")
        deadline = time.monotonic() + 10
        while not list(session.run.glob("*/oom.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
    rank = session.capture.ranks[0]
    (event,) = rank.out_of_memory
    assert (event.reason, event.peer_rank, event.requested_bytes) == ("peer", 3, None)
    assert sum(rank.categories_at(event.time_ns).values()) == event.allocated_bytes


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(requested_bytes=-1),
        lambda content: content.update(stack=[["a", 1, 2]]),
        lambda content: content.update(free_pieces=[1]),
        lambda content: content.update(version=2),
        lambda content: content.pop("device"),
    ],
)
def test_a_bundle_that_makes_no_sense_is_told_of(
    over: Install, tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    run(tmp_path / "run", over(HookHistory()))
    (path,) = tmp_path.glob("run/*/oom.json")
    content, _ = read_json(path)
    damage(content)
    write_json(path, content)
    rank = memlens.load(tmp_path / "run").ranks[0]
    assert rank.out_of_memory == ()
    assert any("oom.json can not be read" in problem for problem in rank.coverage.problems)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "memlens-oom", "version": 1}'])
def test_a_broken_bundle_is_told_of(over: Install, tmp_path: Path, text: str) -> None:
    run(tmp_path / "run", over(HookHistory()))
    (path,) = tmp_path.glob("run/*/oom.json")
    path.write_text(text)
    problems = memlens.load(tmp_path / "run").ranks[0].coverage.problems
    assert any("oom.json can not be read" in problem for problem in problems)


def test_ten_are_kept(tmp_path: Path) -> None:
    written = [write_bundle(tmp_path, time_ns=number) for number in range(12)]
    assert [path.name if path else None for path in written] == [
        "oom.json",
        *(f"oom-{number}.json" for number in range(2, 11)),
        None,
        None,
    ]
