"""Updating within backward: the same weights, and no gradient that outlives its layer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import Outcome, Recording, most_between, now, run_both
from torch import nn

from memlens.errors import UsageError
from memlens.events import Category, Phase
from memlens.optim.in_backward import StepInBackward

BATCH, WIDTH, LAYERS = 4, 48, 5
FLOAT = 4
WEIGHT = FLOAT * WIDTH * WIDTH
LAYER = WEIGHT + FLOAT * WIDTH
ROW = FLOAT * BATCH * WIDTH

Make = Callable[[Any], torch.optim.Optimizer]


def stack() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)


def train(make: Make, in_backward: bool, steps: int = 6) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = stack()
    optimizer = make(model.parameters())
    if in_backward:
        optimizer = StepInBackward(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    x, target = batch()
    for _ in range(steps):
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=False),
        lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=False),
        lambda params: torch.optim.AdamW(params, lr=1e-2, foreach=True),
        lambda params: torch.optim.Adagrad(params, lr=1e-2),
        lambda params: torch.optim.RMSprop(params, lr=1e-2),
    ],
    ids=["sgd", "adamw", "foreach", "adagrad", "rmsprop"],
)
def test_weights_are_those_of_the_ordinary_update(make: Make) -> None:
    """Each parameter's update knows no other, so when it happens changes nothing; schedules act."""
    for ours, plain in zip(train(make, True), train(make, False), strict=True):
        assert torch.equal(ours, plain)


def job(in_backward: bool) -> Callable[[Recording], Outcome]:
    def run(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
            if in_backward:
                optimizer = StepInBackward(optimizer)
            x, target = batch()
            for step in range(4):
                done.moments[f"before step {step}"] = now()
                nn.functional.mse_loss(model(x), target).backward()
                done.moments[f"backward {step}"] = now()
                optimizer.step()
                optimizer.zero_grad()
                done.moments[f"step {step}"] = now()
        done.values = [parameter.detach() for parameter in model.parameters()]
        if isinstance(optimizer, StepInBackward):
            optimizer.remove()
        return done

    return run


def test_at_most_a_layers_gradients_are_alive(tmp_path: Path) -> None:
    plain = run_both(job(False), tmp_path / "plain")
    plain.outcome.values.clear()  # the next run must not find them in memory
    ours = run_both(job(True), tmp_path / "ours")

    for step in (1, 2, 3):
        assert plain.at(f"backward {step}")[Category.GRADIENT] == LAYERS * LAYER
        assert Category.GRADIENT not in ours.at(f"backward {step}")
        moments = ours.outcome.moments
        most = most_between(
            ours.rank, Category.GRADIENT, moments[f"before step {step}"], moments[f"step {step}"]
        )
        # A layer's own, and at times what backward hands from one layer to the next: one or two rows.
        assert LAYER - FLOAT * WIDTH <= most <= LAYER + 2 * ROW
        state = 2 * LAYERS * LAYER + 2 * LAYERS * FLOAT
        for recorded in (plain, ours):
            assert recorded.at(f"step {step}")[Category.OPTIMIZER_STATE] == state


def test_a_training_step_is_still_one_step(tmp_path: Path) -> None:
    recorded = run_both(job(True), tmp_path)

    assert [step.step for step in recorded.rank.steps()] == [0, 1, 2, 3]
    temporaries = [
        block
        for block in recorded.rank.allocations_at(recorded.rank.peak().time_ns, None)
        if block.category is Category.OPTIMIZER_TEMPORARY
    ]
    assert all(block.phase is Phase.BACKWARD for block in temporaries)


def test_accumulation_is_refused_and_the_next_step_is_free() -> None:
    model = stack()
    optimizer = StepInBackward(torch.optim.SGD(model.parameters(), lr=0.1))
    x, target = batch()

    def backward() -> None:
        nn.functional.mse_loss(model(x), target).backward()

    backward()
    with pytest.raises(UsageError, match="cannot accumulate"):
        backward()
    optimizer.step()
    backward()
    optimizer.step()


def test_a_closure_is_called_once() -> None:
    model = stack()
    optimizer = StepInBackward(torch.optim.SGD(model.parameters(), lr=0.1))
    x, target = batch()
    weight = next(model.parameters())
    before = weight.detach().clone()
    calls = []

    def closure() -> torch.Tensor:
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert not torch.equal(weight, before)


def test_a_checkpoint_goes_either_way() -> None:
    torch.manual_seed(0)
    model = stack()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
    x, target = batch()
    nn.functional.mse_loss(model(x), target).backward()
    plain.step()
    plain.zero_grad()

    twin = stack()
    twin.load_state_dict(model.state_dict())
    wrapped = StepInBackward(torch.optim.AdamW(twin.parameters(), lr=5.0, foreach=False))
    wrapped.load_state_dict(deepcopy(plain.state_dict()))
    assert wrapped.param_groups[0]["lr"] == 1e-2
    both: list[tuple[nn.Module, torch.optim.Optimizer]] = [(model, plain), (twin, wrapped)]
    for each, optimizer in both:
        nn.functional.mse_loss(each(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    plain.load_state_dict(wrapped.state_dict())


def test_hooks_can_be_taken_off() -> None:
    model = stack()
    optimizer = StepInBackward(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.remove()
    x, target = batch()
    nn.functional.mse_loss(model(x), target).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_parameters_do_not_keep_it_alive() -> None:
    model = stack()
    optimizer = StepInBackward(torch.optim.AdamW(model.parameters()))
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
