"""What a job does to its optimizer besides stepping it: checkpoints, schedules, rates set by hand."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.optimizers.llama import batches, llama, optimizer_for, train

from memlens.catalogue.table import CATALOGUE

ROWS = [
    name
    for name, row in CATALOGUE.items()
    if row.runs_on_cpu and not name.endswith(("-foreach", "-loop", "-fused"))
]

STOPPING = [name for name in ROWS if name != "adafactor-momentum"]
"""Its momentum is of updates that the rate has scaled already, so that it coasts."""


def values(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, some, others))


@pytest.mark.parametrize("name", ROWS)
def test_training_goes_on_from_a_checkpoint(name: str) -> None:
    model = llama(layers=1, width=64)
    optimizer = optimizer_for(name, model)
    tokens = batches()
    train(model, optimizer, tokens, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    following = [next(tokens), next(tokens)]

    file.seek(0)
    saved = torch.load(file, weights_only=False)
    other = llama(layers=1, width=64)
    other.load_state_dict(saved["model"])
    fresh = optimizer_for(name, other)
    fresh.load_state_dict(saved["optimizer"])
    assert same(values(other), values(model))

    ends: list[list[torch.Tensor]] = []
    for each, theirs in ((model, optimizer), (other, fresh)):
        torch.manual_seed(3)
        train(each, theirs, iter(following), 2)
        ends.append(values(each))
    assert same(*ends)
    assert not same(ends[0], list(saved["model"].values()))


def still(optimizer: Any, model: torch.nn.Module) -> list[torch.Tensor]:
    """What does not move while the rate is zero."""
    if "z" in next(iter(optimizer.state.values()), {}):
        # Schedule-free: the weights go on moving towards z, which alone takes steps.
        return [state["z"].clone() for state in optimizer.state.values()]
    return values(model)


@pytest.mark.parametrize("name", STOPPING)
def test_a_schedule_takes_effect(name: str) -> None:
    model = llama(layers=1, width=64)
    optimizer = optimizer_for(name, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 2))
    tokens = batches()
    moved = []
    for _ in range(4):
        before = copy.deepcopy(still(optimizer, model))
        train(model, optimizer, tokens, 1)
        after = still(optimizer, model)
        moved.append(len(before) != len(after) or not same(before, after))
        schedule.step()
    first = name == "soap"  # it only looks at the first gradient
    assert moved == [not first, True, False, False]


@pytest.mark.parametrize("name", STOPPING)
def test_a_rate_that_the_job_sets_takes_effect(name: str) -> None:
    model = llama(layers=1, width=64)
    optimizer = optimizer_for(name, model)
    tokens = batches()
    train(model, optimizer, tokens, 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = still(optimizer, model)
    train(model, optimizer, tokens, 1)
    assert same(before, still(optimizer, model))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    train(model, optimizer, tokens, 1)
    assert not same(before, still(optimizer, model))


def test_adafactor_with_momentum_coasts_to_a_halt() -> None:
    model = llama(layers=1, width=64)
    optimizer = optimizer_for("adafactor-momentum", model)
    tokens = batches()
    train(model, optimizer, tokens, 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    positions = [values(model)]
    for _ in range(2):
        train(model, optimizer, tokens, 1)
        positions.append(values(model))
    first, second = (
        torch.cat([(new - old).flatten() for old, new in zip(*pair, strict=True)]).norm()
        for pair in pairwise(positions)
    )
    # beta1; each weight is rounded after its move.
    assert float(second / first) == pytest.approx(0.9, rel=1e-3)
