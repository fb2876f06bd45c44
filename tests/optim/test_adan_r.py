"""Adan-R computes what Adan computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_optimizer import Adan
from tests.optim.training import identical, train

from memlens.errors import UsageError
from memlens.optim import AdanR

FLOATS = [torch.float32, torch.bfloat16, torch.float64]
OPTIONS: list[dict[str, Any]] = [
    {"weight_decouple": True},
    {"betas": (0.8, 0.7, 0.9), "eps": 1e-4},
    {"weight_decay": 0.02},
]


WAYS: list[tuple[str, bool | None]] = [("convolutional", False), ("transformer", None)]
"""Model and `foreach`."""


@pytest.mark.parametrize(("kind", "foreach"), WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bit_identical_after_200_steps(kind: str, dtype: torch.dtype, foreach: bool | None) -> None:
    original = train(Adan, kind, dtype, foreach=foreach)
    assert identical(train(AdanR, kind, dtype, foreach=foreach), original)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_bit_identical_with_other_hyperparameters(
    options: dict[str, Any], dtype: torch.dtype, foreach: bool
) -> None:
    original = train(Adan, dtype=dtype, steps=50, foreach=foreach, **options)
    assert identical(train(AdanR, dtype=dtype, steps=50, foreach=foreach, **options), original)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_maximize_is_to_minimize_the_negative(dtype: torch.dtype, foreach: bool) -> None:
    original = train(Adan, dtype=dtype, steps=20, foreach=foreach)
    ours = train(AdanR, dtype=dtype, sign=-1, steps=20, maximize=True, foreach=foreach)
    assert identical(ours, original)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_formulas_of_the_paper(decoupled: bool) -> None:
    """Xie et al., arXiv 2208.06677, algorithm 1, with the bias corrections of the authors' code.

    Number by number, in float64; the paper's betas are one minus ours. Other order of operations, so
    other rounding: a few of 1e-16 per step.
    """
    lr, eps, decay = 0.01, 1e-8, 0.1
    beta1, beta2, beta3 = 0.02, 0.08, 0.01
    random = torch.Generator().manual_seed(0)
    start = torch.randn(7, generator=random, dtype=torch.float64)
    steps = torch.randn(50, 7, generator=random, dtype=torch.float64)

    expected = []
    for index, theta in enumerate(start.tolist()):
        m = v = n = 0.0
        previous = steps[0, index].item()
        for t, g in enumerate(steps[:, index].tolist(), start=1):
            m = (1 - beta1) * m + beta1 * g
            v = (1 - beta2) * v + beta2 * (g - previous)
            n = (1 - beta3) * n + beta3 * (g + (1 - beta2) * (g - previous)) ** 2
            previous = g
            m_hat = m / (1 - (1 - beta1) ** t)
            v_hat = v / (1 - (1 - beta2) ** t)
            eta = lr / ((n / (1 - (1 - beta3) ** t)) ** 0.5 + eps)
            if decoupled:
                theta = theta * (1 - lr * decay) - eta * (m_hat + (1 - beta2) * v_hat)
            else:
                theta = (theta - eta * (m_hat + (1 - beta2) * v_hat)) / (1 + lr * decay)
        expected.append(theta)

    parameter = torch.nn.Parameter(start.clone())
    betas = (1 - beta1, 1 - beta2, 1 - beta3)
    optimizer = AdanR([parameter], lr, betas, decay, decoupled, eps)
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(
        parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_left_as_they_were(maximize: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(5))
    optimizer = AdanR([parameter], maximize=maximize)
    for _ in range(3):
        gradient = torch.randn(5)
        parameter.grad = gradient
        copy = gradient.clone()
        optimizer.step()
        assert parameter.grad is gradient
        assert torch.equal(gradient, copy)


@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_may_share_memory(maximize: bool) -> None:
    """They are only read, so anything goes: here one expanded gradient for two parameters."""

    def run(shared: bool) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.zeros(5))]
        optimizer = AdanR(parameters, lr=0.1, maximize=maximize)
        for step in range(1, 4):
            gradient = torch.tensor(float(step)).expand(5)
            for parameter in parameters:
                parameter.grad = gradient if shared else gradient.clone()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    assert identical(run(shared=True), run(shared=False))


def test_a_job_that_never_clears_its_gradients_trains_as_with_the_original() -> None:
    def keep(model: Any, optimizer: Any) -> None:
        pass

    original = train(Adan, steps=20, clear=keep)
    assert identical(train(AdanR, steps=20, clear=keep), original)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"eps": -1.0},
        {"weight_decay": -0.1},
        {"betas": (0.9, 0.9)},
        {"betas": (1, 0, 0)},
    ],
    ids=str,
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        AdanR([torch.nn.Parameter(torch.ones(2))], **options)
