"""AdamW-R computes what AdamW computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.optim.training import identical, train

from memlens.errors import UsageError
from memlens.optim import AdamWR

FLOATS = [torch.float32, torch.bfloat16, torch.float64]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"amsgrad": True},
    {"betas": (0.8, 0.9), "eps": 1e-4},  # in bfloat16 these betas tell foreach from no foreach
    {"weight_decay": 0.0},
]


WAYS: list[tuple[str, bool | None]] = [
    ("convolutional", True),
    ("convolutional", False),
    ("transformer", None),
]
"""Model and `foreach`; with None, AdamW uses a loop on the CPU."""


@pytest.mark.parametrize(("kind", "foreach"), WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bit_identical_after_200_steps(kind: str, dtype: torch.dtype, foreach: bool | None) -> None:
    original = train(torch.optim.AdamW, kind, dtype, foreach=foreach)
    assert identical(train(AdamWR, kind, dtype, foreach=foreach), original)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_bit_identical_with_other_hyperparameters(
    options: dict[str, Any], dtype: torch.dtype, foreach: bool
) -> None:
    original = train(torch.optim.AdamW, dtype=dtype, steps=50, foreach=foreach, **options)
    assert identical(train(AdamWR, dtype=dtype, steps=50, foreach=foreach, **options), original)


@pytest.mark.parametrize("foreach", [True, False])
def test_maximize(foreach: bool) -> None:
    options: dict[str, Any] = {"maximize": True, "foreach": foreach}
    original = train(torch.optim.AdamW, sign=-1, steps=20, **options)
    assert identical(train(AdamWR, sign=-1, steps=20, **options), original)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_formulas_of_the_paper(amsgrad: bool) -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, and Reddi et al., arXiv 1904.09237.

    Number by number, in float64. Other order of operations, so other rounding: a few of 1e-16 per step.
    """
    lr, beta1, beta2, eps, decay = 0.01, 0.9, 0.99, 1e-8, 0.1
    random = torch.Generator().manual_seed(0)
    start = torch.randn(7, generator=random, dtype=torch.float64)
    steps = torch.randn(50, 7, generator=random, dtype=torch.float64)

    expected = []
    for index, theta in enumerate(start.tolist()):
        m = v = largest = 0.0
        for t, g in enumerate(steps[:, index].tolist(), start=1):
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = max(largest, v)
            m_hat = m / (1 - beta1**t)
            v_hat = (largest if amsgrad else v) / (1 - beta2**t)
            theta = theta - lr * (m_hat / (v_hat**0.5 + eps) + decay * theta)
        expected.append(theta)

    parameter = torch.nn.Parameter(start.clone())
    optimizer = AdamWR([parameter], lr, (beta1, beta2), eps, decay, amsgrad)
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(
        parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", ["capturable", "differentiable", "fused"])
def test_what_it_cannot_do_is_refused(name: str) -> None:
    parameters = [torch.nn.Parameter(torch.ones(2))]
    yes: dict[str, Any] = {name: True}
    no: dict[str, Any] = {name: False}
    with pytest.raises(UsageError, match=name):
        AdamWR(parameters, **yes)
    AdamWR(parameters, **no)
    with pytest.raises(TypeError, match="nonsense"):
        AdamWR(parameters, nonsense=True)


def test_it_is_an_adamw() -> None:
    """Schedulers, Trainers and DeepSpeed ask."""
    optimizer = AdamWR([torch.nn.Parameter(torch.ones(2))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults == torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).defaults


@pytest.mark.parametrize("foreach", [True, False])
def test_a_learning_rate_that_is_a_tensor_is_read_in_each_step(foreach: bool) -> None:
    def run(lr: Any) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = AdamWR(
            [parameter], lr, foreach=None if isinstance(lr, torch.Tensor) else foreach
        )
        for step in range(3):
            parameter.grad = torch.arange(1.0, 4.0)
            optimizer.step()
            if isinstance(lr, torch.Tensor):
                lr.fill_(0.25 / (step + 2))
            else:
                optimizer.param_groups[0]["lr"] = 0.25 / (step + 2)
        return parameter.detach()

    # A float64 tensor, so that it is the same number.
    assert torch.equal(run(torch.tensor(0.25, dtype=torch.float64)), run(0.25))
