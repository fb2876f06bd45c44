"""Adapters of optimizers: each makes what the catalogue says, out of what the job handed over."""

from __future__ import annotations

from typing import Any

import pytest
import sophia_opt
import torch
from pytorch_optimizer import APOLLO
from schedulefree import AdamWScheduleFree
from tests.optimizers.llama import batches, llama, train
from torch import nn

from memlens.catalogue.variant import parse_variant
from memlens.errors import UsageError
from memlens.optim.together import Together
from memlens.variants.build import build
from memlens.variants.request import read_construction
from memlens_integrations.optimizers import torchao as adapter_of_torchao


def make(text: str, parameters: Any, **hyper: Any) -> Any:
    asked = read_construction(torch.optim.AdamW, (parameters,), {"lr": 1e-3} | hyper)
    return build(parse_variant(text), asked)


def values(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, some, others))


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(32, 32) if number % 2 == 0 else nn.Tanh() for number in range(7))
    return nn.Sequential(*layers).to(dtype)


# -- APOLLO ------------------------------------------------------------------------------------


def apollo_update(optimizer: Any, parameter: nn.Parameter) -> torch.Tensor:
    before = parameter.detach().clone()
    torch.manual_seed(1)
    parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    return parameter.detach() - before


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_apollo_scales_the_gradient_where_the_library_projects_it(
    scale_type: str, shape: tuple[int, int]
) -> None:
    rank = 4
    settings = {"rank": rank, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"}
    parameter = nn.Parameter(torch.zeros(shape))
    library: Any = APOLLO
    theirs = library([{"params": [parameter], **settings}], lr=1e-2, scale_type=scale_type)
    update = apollo_update(theirs, parameter)
    assert torch.linalg.matrix_rank(update) == rank, "the library is mended: drop the row's note"

    parameter = nn.Parameter(torch.zeros(shape))
    ours = make(f"apollo:rank={rank},scale_type={scale_type},lr_scale=1", [parameter], lr=1e-2)
    update = apollo_update(ours, parameter)
    assert torch.linalg.matrix_rank(update) == 32
    assert parameter.grad is not None
    factors = update / parameter.grad  # one for each row or column of the longer side, or one
    first = factors[:1, :1]
    if scale_type == "channel":
        first = factors[:, :1] if shape[0] > shape[1] else factors[:1]
    torch.testing.assert_close(factors, first.expand(shape), rtol=1e-4, atol=0)
    assert bool((first < 0).all())


def test_apollos_factor_is_that_of_adam_in_the_projection() -> None:
    """In the first step Adam's update is the sign of the gradient, but for eps."""
    parameter = nn.Parameter(torch.zeros(48, 32))
    optimizer = make("apollo:rank=4,scale_type=tensor,lr_scale=1", [parameter], lr=1e-2)
    update = apollo_update(optimizer, parameter)
    assert parameter.grad is not None
    matrix = optimizer.state[parameter]["projector"].ortho_matrix
    projection = parameter.grad @ matrix.T
    beta1, beta2 = 0.9, 0.999
    # Moments start at zero and are corrected by the step size, lr * sqrt(1 - beta2) / (1 - beta1).
    adam = (1 - beta1) * projection / ((1 - beta2) ** 0.5 * projection.abs() + 1e-6)
    step_size = 1e-2 * (1 - beta2) ** 0.5 / (1 - beta1)
    expected = -step_size * parameter.grad * adam.norm() / projection.norm()
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("option", ["rank=0", "scale_type=row"])
def test_apollo_refuses_what_makes_no_sense(option: str) -> None:
    with pytest.raises(UsageError, match="APOLLO needs a rank of at least 1 and a scale_type of"):
        make(f"apollo:{option}", [nn.Parameter(torch.randn(8, 8))])


# -- torchao -----------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Linear(64, 64)
        self.odd = nn.Parameter(torch.randn(4100))


def test_torchao_says_what_it_does_not_quantise() -> None:
    model = Odd()
    optimizer = make("adamw8bit-torchao", model.parameters())
    assert adapter_of_torchao.unquantised(optimizer) == optimizer.memlens_notes == []
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert adapter_of_torchao.unquantised(optimizer) == ["odd (4100,)", "whole.bias (64,)"]
    assert optimizer.memlens_notes == [
        "torchao does not quantise the state of odd (4100,), whole.bias (64,)"
    ]


def test_torchao_compiles_nothing_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def inductor(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it compiles")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", inductor)
    parameter = nn.Parameter(torch.randn(64, 64))
    optimizer = make("adamw-fp8", [parameter])
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(parameter, before)

    # And the switch is back where it was: compiled functions reach the compiler again.
    with pytest.raises(Exception, match="it compiles"):
        torch.compile(torch.neg)(torch.ones(2))


# -- LOMO --------------------------------------------------------------------------------------


def train_mlp(model: nn.Sequential, optimizer: Any, steps: int = 3) -> None:
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(8, 32, generator=random)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_lomo_is_sgd_with_a_rate_for_each_group() -> None:
    ends = []
    for lomo in (True, False):
        model = mlp()
        half: list[Any] = [*model[0].parameters(), *model[2].parameters()]
        groups: list[dict[str, Any]] = [
            {"params": half},
            {"params": [*model[4].parameters(), *model[6].parameters()], "lr": 0.05},
        ]
        if lomo:
            optimizer = make("lomo:lr_scale=1", groups, lr=0.2)
            assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]
        else:
            optimizer = torch.optim.SGD(groups, lr=0.2)
        train_mlp(model, optimizer)
        ends.append(values(model))
    assert same(*ends)


def test_lomo_retains_no_gradient_and_refuses_to_accumulate() -> None:
    model = mlp()
    optimizer = make("lomo", model.parameters())
    assert optimizer.updates_in_backward
    begin = values(model)
    model(torch.randn(8, 32)).square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(map(torch.equal, begin, values(model)))
    with pytest.raises(UsageError, match="cannot accumulate"):
        model(torch.randn(8, 32)).square().mean().backward()
    optimizer.step()
    optimizer.remove()
    model(torch.randn(8, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lomo_with_a_closure() -> None:
    model = mlp()
    optimizer = make("lomo", model.parameters())

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(torch.ones(8, 32)).square().mean()
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert float(second.detach()) < float(first.detach())


def test_lomo_refuses_fp16() -> None:
    with pytest.raises(UsageError, match="fp16 parameters only with clipped gradients"):
        make("lomo", mlp(torch.float16).parameters())


# -- Sophia ------------------------------------------------------------------------------------


def test_sophia_estimates_every_few_steps_from_the_jobs_own_gradients() -> None:
    parameter = nn.Parameter(torch.randn(16))
    optimizer = make("sophia:hessian_interval=3", [parameter])
    assert isinstance(optimizer, sophia_opt.SophiaG)
    expected = torch.zeros(16)
    for step in range(7):
        parameter.grad = torch.randn(16)
        optimizer.step()
        if step % 3 == 0:
            expected.mul_(0.99).addcmul_(parameter.grad, parameter.grad, value=1 - 0.99)
        assert torch.equal(optimizer.state[parameter]["hessian"], expected)
    assert optimizer.state[parameter]["step"] == 7


# -- Muon --------------------------------------------------------------------------------------


def test_muon_and_adamw_each_have_their_own() -> None:
    ends = []
    for apart in (False, True):
        model = llama(layers=1, width=32)
        matrices = [
            value
            for name, value in model.named_parameters()
            if value.dim() == 2 and "layers" in name
        ]
        rest = [
            value for value in model.parameters() if not any(value is each for each in matrices)
        ]
        hyper: dict[str, Any] = {"betas": (0.8, 0.9), "weight_decay": 0.2}
        if apart:
            muon = torch.optim.Muon(
                matrices, lr=1e-3, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"
            )
            optimizer: Any = Together(muon, torch.optim.AdamW(rest, lr=1e-3, **hyper))
        else:
            optimizer = make("muon", model.parameters(), **hyper)
            assert [len(group["params"]) for group in optimizer.param_groups] == [7, 5]
            assert optimizer.memlens_notes == []
        train(model, optimizer, batches(), 3)
        ends.append(values(model))
    assert same(*ends)


def test_muon_without_matrices_is_adamw() -> None:
    parameter = nn.Parameter(torch.randn(8))
    optimizer = make("muon", [parameter])
    assert [type(each) for each in optimizer.optimizers] == [torch.optim.AdamW]
    assert optimizer.memlens_notes == ["there are no hidden matrices: AdamW trains all parameters"]


def test_muon_without_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.optim.Muon")
    with pytest.raises(UsageError, match=r"has no torch\.optim\.Muon; update torch"):
        make("muon", [nn.Parameter(torch.randn(8, 8))])


# -- Adam-mini ---------------------------------------------------------------------------------


def test_adam_mini_has_a_second_moment_per_head_of_the_models_configuration() -> None:
    model = llama(layers=1, width=64)
    optimizer = make("adam-mini", model.parameters())
    train(model, optimizer, batches(), 1)
    sizes = {
        name: optimizer.state[parameter]["v_mean"].numel()
        for name, parameter in model.named_parameters()
        if "v_mean" in optimizer.state[parameter]
    }
    attention = "model.layers.0.self_attn"
    assert sizes[f"{attention}.q_proj.weight"] == 4
    assert sizes[f"{attention}.k_proj.weight"] == 2  # grouped queries
    others = {size for name, size in sizes.items() if "q_proj" not in name and "k_proj" not in name}
    assert others == {1}
    # Embedding and head are Adam's.
    assert {name for name, _ in model.named_parameters()} - set(sizes) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 32, bias=False)


def test_adam_mini_asks_for_the_heads_that_nothing_tells() -> None:
    model = Attention()
    with pytest.raises(UsageError, match="write adam-mini:heads=NUMBER"):
        make("adam-mini", model.parameters())
    with pytest.raises(UsageError, match="5 heads do not divide"):
        make("adam-mini:heads=5", model.parameters())
    optimizer = make("adam-mini:heads=8", model.parameters())
    model.q_proj.weight.grad = torch.randn(32, 32)
    optimizer.step()
    assert optimizer.state[model.q_proj.weight]["v_mean"].shape == (8,)


def test_adam_mini_keeps_what_the_jobs_groups_say() -> None:
    model = mlp()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.3},
        {"params": [model[0].bias], "lr": 1e-5},
    ]
    optimizer = make("adam-mini", groups, weight_decay=0.1)
    found = [
        (group["name"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    ]
    assert found == [("0.weight", 1e-3, 0.3), ("0.bias", 1e-5, 0.1)]


# -- schedule-free -----------------------------------------------------------------------------


def test_schedule_free_is_in_train_mode_from_the_start() -> None:
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.ones(4)
    with pytest.raises(Exception, match="not in train mode"):
        AdamWScheduleFree([parameter]).step()
    make("schedulefree-adamw", [parameter]).step()
    assert not torch.equal(parameter, torch.ones(4))
