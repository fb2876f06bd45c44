"""Exceptions in mid-step: those that the job survives, and those that end the session."""

from __future__ import annotations

import gc
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.traces import leftover_hooks
from tests.support.training import (
    Outcome,
    Recorded,
    Recording,
    assert_adds_up,
    assert_sound,
    now,
    run_both,
)
from torch import nn

import memlens
from memlens.events import Category, Phase
from memlens.recording.session import Session, current_session

BATCH, WIDTH = 6, 16
FLOAT = 4
ROW = FLOAT * BATCH * WIDTH
LAYER = FLOAT * (WIDTH * WIDTH + WIDTH)

pytestmark = pytest.mark.usefixtures("source")


class Trouble(Exception):
    """Of the job's own making."""


class HardTrouble(BaseException):
    """As KeyboardInterrupt is: not an Exception, so hooks for failed calls do not see it."""


class Fragile(nn.Module):
    """Raises where it is told to: in forward or in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.middle = nn.Sequential(nn.Linear(WIDTH, WIDTH), Breaking())
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.middle(self.first(x)))
        return result


class Breaking(nn.Module):
    forward_error: BaseException | None = None
    backward_error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.forward_error is not None:
            raise self.forward_error
        if self.backward_error is not None:
            apply: Any = BreakingBackward.apply
            result: torch.Tensor = apply(x, self.backward_error)
            return result
        return x * 1


class BreakingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, error: BaseException) -> torch.Tensor:
        ctx.error = error
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise ctx.error


class BreakingSGD(torch.optim.SGD):
    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        if self.error is not None:
            raise self.error
        return super().step(closure)


def train(
    model: Fragile, done: Outcome, break_at: int | None, place: str, error: BaseException
) -> None:
    """Six steps; one breaks at some place, and the script goes on with the next batch."""
    optimizer = BreakingSGD(model.parameters(), lr=0.1, momentum=0.9)
    breaking = model.middle[1]
    assert isinstance(breaking, Breaking)
    for step in range(6):
        broken = error if step == break_at else None
        breaking.forward_error = broken if place == "forward" else None
        breaking.backward_error = broken if place == "backward" else None
        optimizer.error = broken if place == "optimizer" else None
        x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
        optimizer.zero_grad()
        try:
            loss = nn.functional.mse_loss(model(x), target)
            loss.backward()
            done.losses.append(loss.item())
            optimizer.step()
        except (Trouble, HardTrouble) as caught:
            assert caught is error
            error.__traceback__ = None  # which would keep the failed step's tensors
        loss = x = target = None  # type: ignore[assignment]
        done.moments[f"step {step}"] = now()
    done.values = [value.detach() for value in model.parameters()]
    done.models = [model]


@pytest.mark.parametrize("kind", [Trouble, HardTrouble])
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
def test_a_job_that_survives_an_exception(
    place: str, kind: type[BaseException], tmp_path: Path
) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        error = kind()
        with record():
            train(Fragile(), done, 2, place, error)
        return done

    recorded = run_both(job, tmp_path)

    size = 3 * LAYER
    for step in (0, 1, 3, 4, 5):
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: size,
            Category.GRADIENT: size,
            Category.OPTIMIZER_STATE: size,
        }, step
    # Five steps were finished; what the broken one did counts for the one after it.
    assert [step.step for step in recorded.rank.steps()] == [0, 1, 2, 3, 4]
    assert phases_after(recorded, "step 3") == {
        Phase.FORWARD,
        Phase.BACKWARD,
        Phase.OPTIMIZER,
        Phase.OTHER,
    }


def test_a_model_that_is_first_called_after_an_interrupt(tmp_path: Path) -> None:
    """The calls that the interrupt has left count as open until the step ends, and no longer."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        error = HardTrouble()
        with record():
            model = Fragile()
            train(model, done, 2, "forward", error)
            late = nn.Linear(WIDTH, WIDTH)
            x = torch.randn(BATCH, WIDTH)
            late(x)
            done.moments["late"] = now()
        done.values += [value.detach() for value in late.parameters()]
        done.models.append(late)
        return done

    recorded = run_both(job, tmp_path)

    late = recorded.outcome.moments["late"]
    blocks = recorded.rank.allocations_at(late, None)
    inputs = [block.name for block in blocks if block.category is Category.INPUT]
    assert inputs == ["argument 0"]


def phases_after(recorded: Recorded, moment: str) -> set[Phase]:
    """Phases in which something was allocated after a moment."""
    segments, blocks = recorded.rank.segments, recorded.rank.blocks
    late = blocks.alloc_ns > recorded.outcome.moments[moment]
    found = segments.phase[segments.at(blocks.alloc_ns[late])]
    return {list(Phase)[number] for number in found.tolist()}


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize("kind", [Trouble, HardTrouble, SystemExit, KeyboardInterrupt])
def test_an_exception_that_ends_the_session(
    kind: type[BaseException], place: str, tmp_path: Path
) -> None:
    model, error = Fragile(), kind()
    session = memlens.profile(out=tmp_path / "run")

    caught: BaseException | None = None
    try:
        with session:
            train_until(model, place, error)
    except BaseException as escaped:
        caught = escaped

    assert caught is error
    # Its frames hold a graph that holds the exception, by ways that no garbage collector sees.
    error.__traceback__ = None
    assert current_session() is None
    assert leftover_hooks(model) == []
    rank = session.capture.ranks[0]
    assert_sound(rank)
    assert rank.coverage.complete
    # What follows the last finished step counts as one if it came to a backward.
    assert [step.step for step in rank.steps()] == ([0, 1] if place == "forward" else [0, 1, 2])


def train_until(model: Fragile, place: str, error: BaseException) -> None:
    """As `train`, but nobody catches it."""
    optimizer = BreakingSGD(model.parameters(), lr=0.1, momentum=0.9)
    breaking = model.middle[1]
    assert isinstance(breaking, Breaking)
    for step in range(3):
        broken = error if step == 2 else None
        breaking.forward_error = broken if place == "forward" else None
        breaking.backward_error = broken if place == "backward" else None
        optimizer.error = broken if place == "optimizer" else None
        x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    raise AssertionError("not reached")


def test_sys_exit_keeps_its_code(tmp_path: Path) -> None:
    session = memlens.profile(out=tmp_path / "run")

    with pytest.raises(SystemExit) as caught, session:
        nn.Linear(WIDTH, WIDTH)(torch.randn(BATCH, WIDTH))
        sys.exit(7)

    assert caught.value.code == 7
    assert session.capture.ranks[0].coverage.complete


@pytest.fixture
def no_collector_callbacks() -> Iterator[None]:
    """Without those of other libraries: an interrupt within one is printed, and lost."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


@pytest.mark.usefixtures("no_collector_callbacks")
def test_ctrl_c_at_any_moment(tmp_path: Path) -> None:
    """An interrupt may come while memlens itself is at work; nothing of it may stay behind."""
    generator = random.Random(0)
    interrupts = 0
    for attempt in range(12):
        session = memlens.profile(out=tmp_path / f"run {attempt}", stacks=attempt % 2 == 0)
        interrupts += interrupted(session, generator.uniform(0.001, 0.06))
        assert current_session() is None
        assert_adds_up(session.capture.ranks[0])
    assert interrupts == 12


def interrupted(session: Session, after_s: float) -> bool:
    """Train until a signal comes, some time after the beginning of the session."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(BATCH, WIDTH)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with session:
            drains_often(session)
            signal.setitimer(signal.ITIMER_REAL, after_s)
            limit = time.monotonic() + 10
            while time.monotonic() < limit:
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        assert leftover_hooks(model) == []
    return False


def drains_often(session: Session) -> None:
    """Let every mark drain, so that the signal comes while memlens writes."""
    recorder = session._recorder
    assert recorder is not None
    mark: Callable[..., None] = recorder.mark

    def mark_and_drain(*args: Any, **kwargs: Any) -> None:
        recorder.next_drain_ns = 0
        mark(*args, **kwargs)

    recorder.mark = mark_and_drain  # type: ignore[method-assign]
