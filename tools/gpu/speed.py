"""Step times of tools/gpu_check.py: all ways of recording take turns in rounds, within one process.

A ratio compares a round with the unprofiled round beside it; the device is waited for at the ends of
rounds only. What memlens has to read of a round's events is read within that round, in one drain more
than it would have made.

torch.profiler takes its turns after all others, with unprofiled rounds of its own: what it leaves behind
in CUPTI would slow theirs down, and memlens would look better than it is.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Kineto would print a line for every profiler that is started here.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch import nn

import memlens
from gpu.trainings import Size, llama_shape
from memlens.models.build import build_model, count_parameters, make_batch
from memlens.models.table import find_model

__all__ = ["measure", "watch_drains"]

Step = Callable[[], None]
BARE_ENTRIES = 100_000


# -- jobs ------------------------------------------------------------------------------------------


def language_model(device: str) -> tuple[Step, str]:
    """Llama 350M in bfloat16 with AdamW, 8 x 1024 tokens; on the CPU a tiny one."""
    size = Size(device, 0)
    shape = find_model("llama-350m") if size.is_cuda else llama_shape(size)
    samples, tokens = size.pick(8, 4), size.pick(1024, 64)
    if size.is_cuda and torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        samples = 2
    model = build_model(shape, dtype=torch.bfloat16, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = make_batch(shape, samples, tokens, device=device)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    millions = count_parameters(shape) / 1e6
    return step, f"Llama of {millions:.1f} M parameters, bf16, AdamW, {samples} x {tokens} tokens"


def dispatch_bound(device: str) -> tuple[Step, str]:
    """Sixty linear layers of 8 x 8: nothing but dispatch."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(60))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 8, device=device)

    def step() -> None:
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, "60 linear layers of 8 x 8, AdamW"


# -- ways of recording -----------------------------------------------------------------------------


@dataclass
class Drain:
    """One emptying of the source, with all that is written for it."""

    seconds: float
    entries: int


@dataclass
class Recorded:
    """What the sessions of one way have done."""

    drains: list[Drain] = field(default_factory=list)
    events: int = 0
    steps: int = 0
    problems: list[str] = field(default_factory=list)


def watch_drains(session: Any) -> list[Drain]:
    """Note each drain of a session from here on; empty where there is no session."""
    drains: list[Drain] = []
    if session is None:
        return drains
    recorder = session._recorder
    drain, take = recorder.drain, recorder.source.drain
    entries = 0

    def counted_take() -> Any:
        nonlocal entries
        batch = take()
        entries += len(batch.time_ns)
        return batch

    def counted_drain() -> None:
        nonlocal entries
        entries, began = 0, time.perf_counter()
        drain()
        drains.append(Drain(time.perf_counter() - began, entries))

    recorder.source.drain, recorder.drain = counted_take, counted_drain
    return drains


@contextlib.contextmanager
def nothing(*_: object) -> Iterator[Step]:
    yield _no_more


def _no_more() -> None:
    """Most ways have nothing to catch up with at the ends of a round."""


@contextlib.contextmanager
def memlens_session(device: str, recorded: Recorded, stacks: bool = True) -> Iterator[Step]:
    with tempfile.TemporaryDirectory() as folder:
        session = memlens.profile(out=f"{folder}/run", device=device, stacks=stacks)
        with session:
            drains = watch_drains(session)
            yield session._recorder.drain
        recorded.drains += drains
        recorded.events += session.events
        # A recording that has stopped early would cost less.
        (path,) = Path(folder).glob("run/*/rank.json")
        header = json.loads(path.read_text())
        recorded.problems += header["problems"]
        if not session.events or header.get("lost_events"):
            recorded.problems.append(
                f"{session.events} events recorded, {header.get('lost_events', 0)} lost"
            )


@contextlib.contextmanager
def memlens_without_stacks(device: str, recorded: Recorded) -> Iterator[Step]:
    with memlens_session(device, recorded, stacks=False) as catch_up:
        yield catch_up


@contextlib.contextmanager
def bare_history(*_: object) -> Iterator[Step]:
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=BARE_ENTRIES)
    try:
        yield _no_more
    finally:
        torch.cuda.memory._record_memory_history(None)


@contextlib.contextmanager
def torch_profiler(device: str, recorded: Recorded) -> Iterator[Step]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(
        activities=activities, profile_memory=True, record_shapes=True, with_stack=True
    ):
        yield _no_more


Way = Callable[[str, Recorded], contextlib.AbstractContextManager[Step]]
PLAIN = "none"
TOGETHER: dict[str, Way] = {
    PLAIN: nothing,
    "memlens": memlens_session,
    "memlens, no stacks": memlens_without_stacks,
    "allocator's history alone": bare_history,
}
AFTERWARDS: dict[str, Way] = {PLAIN: nothing, "torch.profiler": torch_profiler}


# -- measuring -------------------------------------------------------------------------------------

JOBS = {"language-model": language_model, "dispatch-bound": dispatch_bound}
COUNTS = {"language-model": (20, 4), "dispatch-bound": (150, 30)}
"""Steps of a round: on CUDA (a second or so), elsewhere."""
FEWEST_ROUNDS, MOST_S = 2, 50.0
"""Rounds are begun for so long; a slow machine makes fewer of them."""


def measure(name: str, device: str, quick: bool) -> dict[str, Any]:
    """Time steps under each way of recording, in turns."""
    torch.manual_seed(0)
    step, title = JOBS[name](device)
    count = COUNTS[name][0 if device == "cuda" else 1]
    rounds = 3 if quick else 9
    if device != "cuda":
        count, rounds = (count // 3 + 1, 2) if quick else (count, 5)
    for _ in range(3):
        step()
    # The CPU's allocator keeps no history of its own.
    together = {
        way: record
        for way, record in TOGETHER.items()
        if device == "cuda" or record is not bare_history
    }
    ways = take_turns(step, together, device, count, rounds)
    later = take_turns(step, AFTERWARDS, device, max(count // 4, 2), 2 if quick else 3)
    plain = ways.pop(PLAIN)
    later.pop(PLAIN)
    ways |= later
    problems = [f"{way}: {text}" for way, row in ways.items() for text in row.pop("problems")]
    return {"job": title, "plain_ms": plain["ms"], "ways": ways, "problems": problems}


def take_turns(
    step: Step, ways: dict[str, Way], device: str, count: int, rounds: int
) -> dict[str, dict[str, Any]]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    recorded = {way: Recorded() for way in ways}
    order = list(ways)
    began = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - began > MOST_S:
            break
        for way in order:
            gc.collect()
            with ways[way](device, recorded[way]) as catch_up:
                for _ in range(2):  # the first ones pay for what is made once
                    step()
                times[way].append(timed(step, count, device, catch_up))
            recorded[way].steps += count + 2
        order.append(order.pop(0))  # so that none always follows the same one
    return {way: figures(times[way], times[PLAIN], recorded[way]) for way in ways}


def timed(step: Step, count: int, device: str, catch_up: Step) -> float:
    """Seconds of a step."""
    catch_up()
    wait(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    catch_up()
    wait(device)
    return (time.perf_counter() - began) / count


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def figures(times: list[float], plain: list[float], recorded: Recorded) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(times, plain, strict=True)]
    found: dict[str, Any] = {
        "ms": statistics.median(times) * 1e3,
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "problems": sorted(set(recorded.problems)),
    }
    entries = sum(drain.entries for drain in recorded.drains)
    if recorded.events:
        found["events_per_step"] = recorded.events / recorded.steps
    if entries:
        seconds = sum(drain.seconds for drain in recorded.drains)
        found["drains"] = len(recorded.drains)
        found["drain_ms_per_10000"] = seconds / entries * 10_000 * 1e3
    return found
