"""Lion-R computes what Lion computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_optimizer import Lion
from tests.optim.training import identical, train

from memlens.errors import UsageError
from memlens.optim import LionR

FLOATS = [torch.float32, torch.bfloat16, torch.float64]
OPTIONS: list[dict[str, Any]] = [
    {"weight_decouple": False},
    {"fixed_decay": True, "weight_decay": 1e-3},
    {"betas": (0.7, 0.8)},
    {"betas": (0.9, 0.5)},  # the published order has no answer to beta1 > beta2
    {"weight_decay": 0.2},
]


WAYS: list[tuple[str, bool | None]] = [("convolutional", False), ("transformer", None)]
"""Model and `foreach`."""


@pytest.mark.parametrize(("kind", "foreach"), WAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bit_identical_after_200_steps(kind: str, dtype: torch.dtype, foreach: bool | None) -> None:
    """Also in bfloat16: nothing is rounded that Lion does not round."""
    original = train(Lion, kind, dtype, foreach=foreach)
    assert identical(train(LionR, kind, dtype, foreach=foreach), original)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_bit_identical_with_other_hyperparameters(
    options: dict[str, Any], dtype: torch.dtype, foreach: bool
) -> None:
    original = train(Lion, dtype=dtype, steps=50, foreach=foreach, **options)
    assert identical(train(LionR, dtype=dtype, steps=50, foreach=foreach, **options), original)


@pytest.mark.parametrize("options", [{}, {"weight_decouple": False}], ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_maximize(options: dict[str, Any], foreach: bool) -> None:
    original = train(Lion, sign=-1, steps=20, maximize=True, foreach=foreach, **options)
    ours = train(LionR, sign=-1, steps=20, maximize=True, foreach=foreach, **options)
    assert identical(ours, original)


def test_the_formulas_of_the_paper() -> None:
    """Chen et al., arXiv 2302.06675, algorithm 2, number by number, in float64."""
    lr, beta1, beta2, decay = 0.01, 0.9, 0.99, 0.1
    random = torch.Generator().manual_seed(0)
    start = torch.randn(7, generator=random, dtype=torch.float64)
    steps = torch.randn(50, 7, generator=random, dtype=torch.float64)

    expected = []
    for index, theta in enumerate(start.tolist()):
        m = 0.0
        for g in steps[:, index].tolist():
            c = beta1 * m + (1 - beta1) * g
            theta = theta - lr * ((c > 0) - (c < 0) + decay * theta)
            m = beta2 * m + (1 - beta2) * g
        expected.append(theta)

    parameter = torch.nn.Parameter(start.clone())
    optimizer = LionR([parameter], lr, (beta1, beta2), decay)
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(
        parameter.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "one number": [()],
    "one tensor": [(3, 1001)],
    "as many as fit twice": [(4,)] * 9,
    "every size once": [(size,) for size in range(1, 40)],
    "far apart": [(2000,), (), (3, 5), (40, 50), (2000,), (0,), (7, 0), (60_000,)],
    "equal sizes in other shapes": [(6, 4), (24,), (2, 3, 4), (4, 6), (1, 24)],
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("order", ["contiguous", "transposed", "gradients transposed", "gaps"])
def test_any_sizes_and_strides(dtype: torch.dtype, name: str, order: str) -> None:
    """Signs are put into other gradients; each element must be met exactly once."""

    def laid_out(tensor: torch.Tensor, like: str) -> torch.Tensor:
        if like == "gaps":
            wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
            wide[..., 0] = tensor
            return wide[..., 0]
        if tensor.dim() == 2 and like == "transposed":
            return tensor.t().contiguous().t()
        return tensor

    def run(make: Any) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(0)
        parameters = [
            torch.nn.Parameter(laid_out(torch.randn(shape, generator=random).to(dtype), order))
            for shape in SHAPES[name]
        ]
        optimizer = make(parameters, lr=0.01, weight_decay=0.1)
        for _ in range(3):
            for parameter in parameters:
                gradient = torch.randn(parameter.shape, generator=random).to(dtype)
                parameter.grad = laid_out(gradient, order.removeprefix("gradients "))
            optimizer.step()
        moments = [optimizer.state[parameter]["exp_avg"] for parameter in parameters]
        return [parameter.detach() for parameter in parameters] + moments

    assert identical(run(LionR), run(Lion))


@pytest.mark.parametrize(
    ("dtype", "turned"), [(torch.bfloat16, True), (torch.float64, False)], ids=str
)
def test_why_the_published_order_is_not_used(dtype: torch.dtype, turned: bool) -> None:
    """Moment first, then the sign of lerp(g, m, beta1 / beta2): m has been rounded in between.

    The two can only differ where lerp(m, g, 1 - beta1) nearly cancels: with u the unit roundoff, where
    it is below some 4 u |m|. With these numbers that is two in 10^4 elements in bfloat16, and none of
    10^5 in float64.
    """
    random = torch.Generator().manual_seed(0)
    m = torch.randn(100_000, generator=random, dtype=torch.float64).mul(0.1).to(dtype)
    g = torch.randn(100_000, generator=random, dtype=torch.float64).to(dtype)
    combined = torch.lerp(m, g, 1 - 0.9)
    published = torch.lerp(g, torch.lerp(m, g, 1 - 0.99), 0.9 / 0.99)
    differ = combined.sign() != published.sign()
    assert bool(differ.any()) is turned
    bound = 4 * torch.finfo(dtype).eps * m[differ].abs()
    assert bool((combined[differ].abs() <= bound).all())


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"weight_decay": -0.1}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)}],
    ids=str,
)
def test_hyperparameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        LionR([torch.nn.Parameter(torch.ones(2))], **options)
