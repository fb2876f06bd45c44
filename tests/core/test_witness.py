"""Our bytes agree with a witness that knows nothing of us: torch.profiler, for the same step."""

from __future__ import annotations

import gc
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.training import assert_sound, now
from torch import nn

import memlens
from memlens.capture import RankCapture
from memlens.disk.format import codes
from memlens.disk.reader import RankData, read_rank
from memlens.events import Action

ACTION = codes(Action)


class Classifier(nn.Module):
    """A bit of everything: embedding, attention, dropout, normalisation, convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.convolution = nn.Conv1d(16, 8, 3, padding=1)
        self.head = nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 10))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        hidden = self.convolution(hidden.transpose(1, 2)).mean(2)
        result: torch.Tensor = self.head(hidden)
        return result


@dataclass(frozen=True)
class Account:
    """What one step allocated."""

    allocations: int
    allocated_bytes: int
    frees: int
    freed_bytes: int
    peak_bytes: int
    """Above what was there at the start."""


def step_within(recording: AbstractContextManager[Any], foreach: bool) -> None:
    """Two steps, of which the second is recorded."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=foreach)
    tokens, labels = torch.randint(50, (4, 12)), torch.randint(10, (4,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    step()
    gc.collect()  # garbage of an earlier job, freed within the step, would look like its own
    with recording:
        step()


def account_of_torch_profiler(foreach: bool) -> Account:
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    )
    step_within(profiler, foreach)
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    pending: list[Any] = list(profiler.profiler.kineto_results.experimental_event_tree())
    found: list[tuple[int, int, int]] = []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.name == "[memory]":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    assert sum(size for _, _, size in found) == sum(
        event.self_cpu_memory_usage for event in profiler.events()
    )  # the public table tells the same sum, op by op
    # torch remembers addresses from earlier profiles, also when it was not told of their end. A free
    # of such an address is not of this step, and its size is that of the block from back then.
    alive: set[int] = set()
    changes: list[int] = []
    for _, address, size in sorted(found, key=lambda item: item[0]):
        if size > 0:
            alive.add(address)
        elif address not in alive:
            continue
        else:
            alive.remove(address)
        changes.append(size)
    sizes = np.array(changes, np.int64)
    return Account(
        allocations=int(np.count_nonzero(sizes > 0)),
        allocated_bytes=int(sizes[sizes > 0].sum()),
        frees=int(np.count_nonzero(sizes < 0)),
        freed_bytes=-int(sizes[sizes < 0].sum()),
        peak_bytes=int(np.cumsum(sizes).max()),
    )


def account_of(rank: RankCapture) -> Account:
    blocks = rank.blocks
    ours = ~blocks.preexisting
    ended = ours & (blocks.last < len(blocks.time_ns))
    return Account(
        allocations=int(np.count_nonzero(ours & (blocks.size_bytes > 0))),
        allocated_bytes=int(blocks.size_bytes[ours].sum()),
        frees=int(np.count_nonzero(ended & (blocks.size_bytes > 0))),
        freed_bytes=int(blocks.size_bytes[ended].sum()),
        peak_bytes=int(blocks.running_bytes(ours).max()),
    )


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("source", "stacks"),
    [("hook", False), ("hook", True), ("profiler", False)],
    ids=["hook", "hook with stacks", "profiler"],
)
def test_the_same_step_has_the_same_bytes_as_under_torch_profiler(
    source: str, stacks: bool, foreach: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", source)
    session = memlens.profile(out=tmp_path / "run", stacks=stacks)
    step_within(session, foreach)
    rank = session.capture.ranks[0]

    witness = account_of_torch_profiler(foreach)

    assert account_of(rank) == witness
    assert witness.allocations > 200
    assert rank.coverage.witness_difference_bytes == 0
    assert_sound(rank)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RankData:
    """One rank's streams, to leave something out of."""
    session = memlens.profile(out=tmp_path_factory.mktemp("witness") / "run")
    step_within(session, foreach=True)
    assert session.run is not None
    return read_rank(session.run / "rank-00000")


def without(data: RankData, event: int) -> RankCapture:
    """The rank, as if one event had never been recorded."""
    events = {name: np.delete(column, event) for name, column in data.events.items()}
    return RankCapture(replace(data, events=events), 0, 0)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("action", ["alloc", "free"])
def test_a_dropped_event_is_noticed(recorded: RankData, action: str, position: float) -> None:
    assert RankCapture(recorded, 0, 0).coverage.witness_difference_bytes == 0
    candidates = np.flatnonzero(
        (recorded.events["action"] == ACTION[action]) & (recorded.events["allocated_bytes"] > 0)
    )
    victim = int(candidates[int(position * len(candidates))])

    coverage = without(recorded, victim).coverage

    assert coverage.witness_difference_bytes == recorded.events["allocated_bytes"][victim] > 0
    assert not coverage.complete


@pytest.mark.parametrize("source", ["hook", "profiler"])
def test_a_block_that_another_thread_frees_is_seen_or_reported(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may hand tensors to a thread that logs or saves them."""
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", source)
    size = 4096
    moments: list[int] = []
    with memlens.profile(out=tmp_path / "run", stacks=False) as session:
        handed = [torch.empty(size, dtype=torch.uint8)]
        moments.append(now())
        thread = threading.Thread(target=handed.clear)
        thread.start()
        thread.join()
        moments.append(now())
        torch.empty(1)
    rank = session.capture.ranks[0]
    before, after = (sum(rank.categories_at(moment).values()) for moment in moments)
    coverage = rank.coverage

    if source == "hook":
        assert before - after == size
        assert coverage.complete
        assert coverage.witness_difference_bytes == 0
    else:  # torch's profiler follows one thread, and does not count what others free
        assert before == after
        assert any("other threads" in note for note in coverage.notes)


def test_blocks_of_other_threads_are_recorded(tmp_path: Path) -> None:
    size = 4096
    moments: list[int] = []
    made: list[torch.Tensor] = []

    def work() -> None:
        made.append(torch.empty(size, dtype=torch.uint8))

    with memlens.profile(out=tmp_path / "run") as session:
        moments.append(now())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        moments.append(now())
        made.clear()
        moments.append(now())
    rank = session.capture.ranks[0]

    before, during, after = (sum(rank.categories_at(moment).values()) for moment in moments)
    assert (during - before, after - before) == (size, 0)
    assert rank.coverage.complete
