"""Several optimizers as one, and fp32 master weights: groups, schedules, checkpoints, tags."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import Outcome, Recording, now, run_both
from torch import nn

from memlens.errors import UsageError
from memlens.events import Category
from memlens.optim.master_weights import MasterWeights
from memlens.optim.together import Together

WIDTH, BATCH = 16, 4
MATRIX, VECTOR = WIDTH * WIDTH, WIDTH


def parts(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    values = list(model.parameters())
    return [each for each in values if each.dim() == 2], [
        each for each in values if each.dim() == 1
    ]


def pair(model: nn.Module) -> Together:
    matrices, vectors = parts(model)
    return Together(
        torch.optim.SGD(matrices, lr=0.1, momentum=0.9),
        torch.optim.AdamW([{"params": vectors, "weight_decay": 0.1}], lr=1e-2),
    )


def one_step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    torch.manual_seed(1)
    x = torch.randn(BATCH, WIDTH, dtype=next(model.parameters()).dtype)
    model(x).float().square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()


def twins(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to(dtype)
    second = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to(dtype)
    second.load_state_dict(first.state_dict())
    return first, second


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_same_as_stepping_each() -> None:
    model, twin = twins()
    together = pair(model)
    apart = pair(twin).optimizers
    schedules: list[Any] = [
        torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (together, *apart)
    ]
    for _ in range(4):
        one_step(model, together)
        one_step(twin, *apart)
        for schedule in schedules:
            schedule.step()
    assert_same(model, twin)
    assert together.param_groups[0]["lr"] == pytest.approx(0.1 / 16)


def test_a_checkpoint_of_all() -> None:
    model, twin = twins()
    first, second = pair(model), pair(twin)
    one_step(model, first)
    saved = first.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3]]
    assert set(saved["state"]) == {0, 1, 2, 3}

    twin.load_state_dict(model.state_dict())
    second.load_state_dict(deepcopy(saved))
    one_step(model, first)
    one_step(twin, second)
    assert_same(model, twin)
    with pytest.raises(UsageError, match="1 groups"):
        first.load_state_dict(torch.optim.SGD(twin.parameters(), lr=0.1).state_dict())


def test_a_parameter_in_two_is_refused() -> None:
    model, _ = twins()
    with pytest.raises(ValueError, match="more than one parameter group"):
        Together(*(torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)))
    with pytest.raises(UsageError, match="at least one"):
        Together()


def test_its_state_is_found(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model, _ = twins()
            optimizer = pair(model)
            for _ in range(3):
                one_step(model, optimizer)
            done.moments["end"] = now()
        done.values = [each.detach() for each in model.parameters()]
        return done

    recorded = run_both(job, tmp_path)

    # Momentum of two matrices; two moments of two vectors, and a counter for each.
    assert recorded.at("end")[Category.OPTIMIZER_STATE] == 4 * (2 * MATRIX + 2 * 2 * VECTOR + 2)
    assert len(recorded.rank.steps()) == 3


def test_master_weights_are_fp32_training_with_rounded_weights(tmp_path: Path) -> None:
    """The copies go the way of a fp32 model that gets the same gradients."""
    model, _ = twins(torch.bfloat16)
    copies = [each.detach().float().clone().requires_grad_() for each in model.parameters()]
    reference = torch.optim.AdamW(copies, lr=1e-2, foreach=False)
    optimizer = MasterWeights(
        model.parameters(), lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    )
    torch.manual_seed(1)
    for _ in range(5):
        x = torch.randn(BATCH, WIDTH, dtype=torch.bfloat16)
        model(x).float().square().mean().backward()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            assert parameter.grad is not None
            copy.grad = parameter.grad.float()
        reference.step()
        optimizer.step()
        optimizer.zero_grad()
        for copy, parameter in zip(copies, model.parameters(), strict=True):
            assert torch.equal(parameter, copy.bfloat16())


def test_master_weights_have_a_category_of_their_own(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model, _ = twins(torch.bfloat16)
            optimizer = MasterWeights(
                model.parameters(), lambda groups: torch.optim.AdamW(groups, foreach=False)
            )
            for _ in range(3):
                one_step(model, optimizer)
            done.moments["end"] = now()
        done.values = [each.detach() for each in model.parameters()]
        return done

    recorded = run_both(job, tmp_path)

    elements = 2 * (MATRIX + VECTOR)
    held = recorded.at("end")
    assert held[Category.WEIGHT] == 2 * elements
    assert held[Category.MASTER_WEIGHT] == 4 * elements
    assert held[Category.OPTIMIZER_STATE] == 8 * elements + 4 * 4


def test_a_checkpoint_of_master_weights() -> None:
    def make(model: nn.Module) -> MasterWeights:
        return MasterWeights(
            model.parameters(), lambda groups: torch.optim.AdamW(groups, lr=1e-3, foreach=False)
        )

    model, twin = twins(torch.bfloat16)
    first, second = make(model), make(twin)
    for _ in range(3):
        one_step(model, first)
    second.load_state_dict(deepcopy(first.state_dict()))
    assert_same(model, twin)
    one_step(model, first)
    one_step(twin, second)
    assert_same(model, twin)
