"""What the optimizers that work in spent gradients do to gradients, and what a job may do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.optim.training import (
    MODELS,
    PAIRS,
    SPENDING,
    Make,
    gradients,
    groups,
    identical,
    loss_of,
    train,
    values,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from memlens.errors import UsageError

spending = pytest.mark.parametrize("make", SPENDING.values(), ids=SPENDING.keys())
all_pairs = pytest.mark.parametrize(("original", "ours"), PAIRS.values(), ids=PAIRS.keys())


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


# -- after the step ------------------------------------------------------------------------------


@spending
def test_a_spent_gradient_keeps_its_storage_and_begins_with_nan(make: Make) -> None:
    weights = [parameter(3, 4), parameter(5), parameter()]
    optimizer = make(weights)
    before = []
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
        before.append((weight.grad, weight.grad.data_ptr()))
    optimizer.step()
    for weight, (gradient, address) in zip(weights, before, strict=True):
        assert weight.grad is gradient
        assert gradient.data_ptr() == address
        assert bool(gradient.flatten()[0].isnan())
        assert bool(weight.isfinite().all())


@spending
def test_a_copy_of_a_spent_gradient_spoils_the_weights_and_does_not_pass_for_one(
    make: Make,
) -> None:
    weight = parameter(4)
    optimizer = make([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    weight.grad = weight.grad.clone()
    optimizer.step()
    assert bool(weight[0].isnan())


# -- ways to clear them ----------------------------------------------------------------------------


def clear_data(model: nn.Module, optimizer: Optimizer) -> None:
    for gradient in gradients(model):
        if gradient is not None:
            gradient.data.zero_()


def clear_in_place(model: nn.Module, optimizer: Optimizer) -> None:
    for gradient in gradients(model):
        if gradient is not None:
            gradient.zero_()


def clear_by_detaching(model: nn.Module, optimizer: Optimizer) -> None:
    for gradient in gradients(model):
        if gradient is not None:
            gradient.detach_()
            gradient.copy_(torch.zeros(()))


def clear_by_deleting(model: nn.Module, optimizer: Optimizer) -> None:
    for value in model.parameters():
        value.grad = None


CLEAR: dict[str, Callable[[nn.Module, Optimizer], Any]] = {
    "zero_grad()": lambda model, optimizer: optimizer.zero_grad(),
    "zero_grad(False)": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model.zero_grad()": lambda model, optimizer: model.zero_grad(),
    "model.zero_grad(False)": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "grad = None": clear_by_deleting,
    "grad.zero_()": clear_in_place,
    "grad.data.zero_()": clear_data,
    "grad.copy_(0)": clear_by_detaching,
}


@all_pairs
@pytest.mark.parametrize("way", CLEAR)
def test_every_way_of_clearing(original: Make, ours: Make, way: str) -> None:
    expected = train(original, steps=5, clear=CLEAR[way])
    assert identical(train(ours, steps=5, clear=CLEAR[way]), expected)


@all_pairs
@pytest.mark.parametrize("way", ["zero_grad()", "zero_grad(False)"])
def test_accumulation_and_clipping(original: Make, ours: Make, way: str) -> None:
    def update(model: nn.Module, optimizer: Optimizer) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()

    options: dict[str, Any] = {"micro_batches": 3, "update": update, "clear": CLEAR[way]}
    expected = train(original, steps=10, **options)
    assert identical(train(ours, steps=10, **options), expected)


@all_pairs
def test_clearing_right_after_the_step(original: Make, ours: Make) -> None:
    def update(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    options: dict[str, Any] = {"update": update, "clear": lambda model, optimizer: None}
    assert identical(train(ours, steps=5, **options), train(original, steps=5, **options))


@all_pairs
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_parameter_that_gets_no_gradient_in_some_steps(
    original: Make, ours: Make, set_to_none: bool
) -> None:
    def run(make: Make) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
        optimizer = make(model.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(6):
            optimizer.zero_grad(set_to_none=set_to_none)
            # The third one never gets any.
            model[step % 2](torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        return values(model)

    assert identical(run(ours), run(original))


@spending
@pytest.mark.parametrize("set_to_none", [True, False])
def test_closures(make: Make, set_to_none: bool) -> None:
    original = next(first for first, second in PAIRS.values() if second is make)

    def run(make: Make) -> tuple[list[Tensor], list[float]]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = make(model.parameters(), lr=0.1)

        def closure() -> float:
            assert torch.is_grad_enabled()
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = model(torch.ones(2, 3)).square().sum()
            loss.backward()
            return float(loss.detach())

        losses: list[Any] = [optimizer.step(closure) for _ in range(5)]
        return values(model), losses

    some, others = run(make), run(original)
    assert identical(some[0], others[0])
    assert some[1] == others[1]
    assert some[1][-1] < some[1][0]


# -- gradients that were not cleared ---------------------------------------------------------------


def state_of(optimizer: Optimizer) -> list[Any]:
    return [
        [value.clone() if isinstance(value, Tensor) else value for value in state.values()]
        for state in optimizer.state.values()
    ] + [group.get("step") for group in optimizer.param_groups]


def assert_refused_and_nothing_changed(
    optimizer: Optimizer, model: nn.Module, match: str, steps: Callable[[], Any] | None = None
) -> None:
    weights, state = values(model), state_of(optimizer)
    before = [(g, None if g is None else g.clone()) for g in gradients(model)]
    with pytest.raises(UsageError, match=match) as caught:
        (steps or optimizer.step)()
    assert "\n" not in str(caught.value)
    assert identical(values(model), weights)
    torch.testing.assert_close(state_of(optimizer), state, rtol=0, atol=0, equal_nan=True)
    for (gradient, copy), now in zip(before, gradients(model), strict=True):
        assert now is gradient
        if gradient is not None and gradient.layout is torch.strided:
            torch.testing.assert_close(gradient, copy, rtol=0, atol=0, equal_nan=True)


def a_job(make: Make, kind: str = "convolutional") -> tuple[nn.Module, Optimizer, torch.Generator]:
    torch.manual_seed(0)
    model = MODELS[kind]()
    return model, make(groups(model), lr=1e-3), torch.Generator().manual_seed(1)


@spending
def test_step_and_step_again(make: Make) -> None:
    model, optimizer, random = a_job(make)
    loss_of(model, random).backward()
    optimizer.step()
    assert_refused_and_nothing_changed(optimizer, model, r"not cleared.*zero_grad\(\)")


@spending
def test_step_and_backward_and_step_again(make: Make) -> None:
    model, optimizer, random = a_job(make)
    loss_of(model, random).backward()
    optimizer.step()
    loss_of(model, random).backward()
    assert_refused_and_nothing_changed(optimizer, model, "not cleared")


@spending
def test_one_gradient_that_was_forgotten(make: Make) -> None:
    model, optimizer, random = a_job(make)
    loss_of(model, random).backward()
    optimizer.step()
    *some, _ = model.parameters()
    for value in some:
        value.grad = None
    loss_of(model, random).backward()
    assert_refused_and_nothing_changed(optimizer, model, "not cleared")


@spending
def test_the_job_goes_on_once_they_are_cleared(make: Make) -> None:
    model, optimizer, random = a_job(make)
    loss_of(model, random).backward()
    optimizer.step()
    with pytest.raises(UsageError):
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, random).backward()
    optimizer.step()
    assert all(bool(value.isfinite().all()) for value in values(model))


@spending
def test_another_optimizer_finds_out_as_well(make: Make) -> None:
    model, optimizer, random = a_job(make)
    loss_of(model, random).backward()
    optimizer.step()
    assert_refused_and_nothing_changed(make(model.parameters()), model, "not cleared")


@spending
def test_a_closure_that_clears_nothing(make: Make) -> None:
    model, optimizer, random = a_job(make)

    def closure() -> float:
        loss = loss_of(model, random)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with pytest.raises(UsageError, match="not cleared"):
        optimizer.step(closure)


@spending
def test_infinities_in_a_kept_gradient_are_not_taken_for_nan(make: Make) -> None:
    weights = [parameter(2), parameter(2)]
    optimizer = make(weights)
    for _ in range(2):
        weights[0].grad = torch.tensor([float("inf"), 1.0])
        weights[1].grad = torch.tensor([float("-inf"), 1.0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        for weight, sign in zip(weights, (1, -1), strict=True):
            assert weight.grad is not None
            weight.grad[0] = sign * float("inf")
    optimizer.step()


# -- gradients that cannot be worked in ------------------------------------------------------------


@pytest.mark.parametrize("make", [ours for _, ours in PAIRS.values()], ids=PAIRS.keys())
def test_sparse_gradients_are_refused_before_anything_is_changed(make: Make) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Embedding(5, 3, sparse=True)])
    optimizer = make(model.parameters(), weight_decay=0.1)
    (model[0](torch.ones(3)).sum() + model[1](torch.tensor([1, 2])).sum()).backward()
    assert_refused_and_nothing_changed(optimizer, model, "sparse=False")
    assert not optimizer.state


@pytest.mark.parametrize("make", [ours for _, ours in PAIRS.values()], ids=PAIRS.keys())
def test_complex_parameters_are_refused_before_anything_is_changed(make: Make) -> None:
    model = nn.ParameterList([parameter(3), nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    optimizer = make(model, weight_decay=0.1)
    (model[0].sum() + model[1].abs().sum()).backward()
    assert_refused_and_nothing_changed(optimizer, model, "complex64")
    assert not optimizer.state


@all_pairs
def test_channels_last_and_other_strides(original: Make, ours: Make) -> None:
    def run(make: Make) -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        weights = [
            nn.Parameter(torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last)),
            nn.Parameter(torch.ones(4, 3, 2, 2)),
            nn.Parameter(torch.ones(6, 8)),
            nn.Parameter(torch.ones(6, 8).t()),
        ]
        optimizer = make(weights, lr=0.01, weight_decay=0.1)
        for _ in range(3):
            for index, weight in enumerate(weights):
                gradient = torch.randn(weight.shape, generator=random)
                if index == 1:
                    gradient = gradient.to(memory_format=torch.channels_last)
                if index == 2:
                    gradient = gradient.t().contiguous().t()
                weight.grad = gradient
            optimizer.step()
        return [weight.detach() for weight in weights]

    assert identical(run(ours), run(original))


def expanded() -> list[Tensor]:
    return [torch.tensor(2.0).expand(6), torch.arange(3.0).expand(2, 3)]


def overlapping_windows() -> list[Tensor]:
    return [torch.arange(8.0).unfold(0, 3, 1), torch.arange(6.0)]


def the_same_twice() -> list[Tensor]:
    gradient = torch.arange(6.0)
    return [gradient, gradient]


def two_views_that_overlap() -> list[Tensor]:
    flat = torch.arange(9.0)
    return [flat[3:], flat[:6]]


def two_views_that_overlap_in_other_dtypes() -> list[Tensor]:
    flat = torch.ones(8)
    return [flat[4:], flat.view(torch.float64)[:3]]


def two_views_side_by_side() -> list[Tensor]:
    flat = torch.arange(12.0)
    return [flat[:6], flat[6:].view(2, 3)]


def two_columns() -> list[Tensor]:
    matrix = torch.arange(12.0).view(6, 2)
    return [matrix[:, 0], matrix[:, 1]]


@all_pairs
@pytest.mark.parametrize(
    "layout",
    [
        expanded,
        overlapping_windows,
        the_same_twice,
        two_views_that_overlap,
        two_views_that_overlap_in_other_dtypes,
        two_views_side_by_side,
        two_columns,
    ],
)
def test_gradients_that_share_memory(
    original: Make, ours: Make, layout: Callable[[], list[Tensor]]
) -> None:
    def run(make: Make) -> list[Tensor]:
        weights = [nn.Parameter(torch.ones_like(gradient)) for gradient in layout()]
        optimizer = make(weights, lr=0.01, weight_decay=0.1)
        for step in range(3):
            for weight, gradient in zip(weights, layout(), strict=True):
                weight.grad = gradient + step if step == 1 else gradient
            optimizer.step()
        return [weight.detach() for weight in weights]

    assert identical(run(ours), run(original))


@spending
def test_views_of_one_buffer_are_worked_in_and_not_copied(make: Make) -> None:
    flat = torch.arange(12.0)
    weights = [parameter(6), parameter(2, 3)]
    weights[0].grad, weights[1].grad = flat[:6], flat[6:].view(2, 3)
    make(weights).step()
    assert bool(flat[[0, 6]].isnan().all())


@spending
def test_a_gradient_that_is_the_parameter_itself(make: Make) -> None:
    original = next(first for first, second in PAIRS.values() if second is make)

    def run(make: Make) -> list[Tensor]:
        weight = nn.Parameter(torch.arange(1.0, 6.0))
        optimizer = make([weight], lr=0.1, weight_decay=0.0)
        for _ in range(3):
            weight.grad = weight.detach()
            optimizer.step()
        return [weight.detach()]

    assert identical(run(make), run(original))


@all_pairs
def test_parameters_without_elements_and_without_dimensions(original: Make, ours: Make) -> None:
    def run(make: Make) -> list[Tensor]:
        weights = [parameter(), parameter(0), parameter(3, 0), parameter(2)]
        optimizer = make([{"params": weights}, {"params": []}], lr=0.1)
        for step in range(3):
            for weight in weights:
                weight.grad = torch.full(weight.shape, float(step - 1))
            optimizer.step()
        return [weight.detach() for weight in weights]

    assert identical(run(ours), run(original))


@all_pairs
def test_dtypes_side_by_side_in_one_group(original: Make, ours: Make) -> None:
    def run(make: Make) -> list[Tensor]:
        random = torch.Generator().manual_seed(0)
        dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16]
        weights = [nn.Parameter(torch.ones(5, dtype=dtype)) for dtype in dtypes]
        optimizer = make(weights, lr=0.1)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(5, generator=random).to(weight.dtype)
            optimizer.step()
        return [weight.detach() for weight in weights]

    assert identical(run(ours), run(original))


@all_pairs
def test_no_gradients_at_all(original: Make, ours: Make) -> None:
    weight = parameter(3)
    optimizer = ours([weight])
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state
