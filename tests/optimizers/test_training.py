"""Every optimizer of the catalogue trains: the loss of a small Llama falls, at the job's own rate."""

from __future__ import annotations

import pytest
import torch
from tests.optimizers.llama import batches, llama, optimizer_for, train

from memlens.catalogue.table import CATALOGUE

STEPS = 50
JOINT = ("-foreach", "-loop", "-fused")
"""Ways to compute the same, which torch's own tests compare."""


def rows(slow: bool) -> list[str]:
    """torchao steps eagerly here, and SOAP multiplies large matrices: these take seconds."""
    return [
        name
        for name, row in CATALOGUE.items()
        if row.runs_on_cpu
        and not name.endswith(JOINT)
        and (("torchao" in row.home or name == "soap") is slow)
    ]


def loss_falls(name: str) -> None:
    model = llama()
    optimizer = optimizer_for(name, model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    losses = train(model, optimizer, batches(), STEPS)
    # Of the last steps together: batches are small, so that one is easier than another.
    last = losses[-5:]
    assert sum(last) / len(last) < 0.9 * losses[0]


@pytest.mark.parametrize("name", rows(slow=False))
def test_loss_falls(name: str) -> None:
    loss_falls(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", rows(slow=True))
def test_loss_falls_slowly(name: str) -> None:
    loss_falls(name)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name.endswith(JOINT)])
def test_implementations_compute_the_same(name: str) -> None:
    plain = name.rsplit("-", 1)[0]
    losses = []
    for each in (plain, name):
        model = llama(layers=1, width=32)
        losses.append(train(model, optimizer_for(each, model), batches(), 5))
    # Fused kernels round otherwise; five steps do not carry that far.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    "name", [name for name, row in CATALOGUE.items() if row.in_backward and row.runs_on_cpu]
)
def test_updates_within_backward_are_those_of_ordinary_steps(name: str) -> None:
    final = []
    for ending in ("", "+no-retain-grad"):
        model = llama(layers=1, width=64)
        optimizer = optimizer_for(name + ending, model)
        torch.manual_seed(2)
        losses = train(model, optimizer, batches(), 4)
        if ending:
            assert all(parameter.grad is None for parameter in model.parameters())
            optimizer.remove()
        final.append((losses, [parameter.detach() for parameter in model.parameters()]))
    (plain, before), (ours, after) = final
    assert ours == plain
    assert all(map(torch.equal, before, after))
