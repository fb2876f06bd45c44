"""The optimizers in jobs of other kinds: compiled, scaled, distributed, without data."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.optim.launching import found_by
from tests.optim.training import PAIRS, Make, convolutional, identical, loss_of, train, values
from torch import Tensor, nn
from torch._dynamo.mutation_guard import install_generation_tagging_init
from torch.optim import Optimizer

import memlens.optim

# Dynamo patches nn.Module for good when it is first used; that is not our doing.
install_generation_tagging_init()

all_pairs = pytest.mark.parametrize(("original", "ours"), PAIRS.values(), ids=PAIRS.keys())
each = pytest.mark.parametrize("make", [ours for _, ours in PAIRS.values()], ids=PAIRS.keys())


def test_the_package_is_light_to_import() -> None:
    code = "import sys, memlens.optim; print(dir(memlens.optim)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AdamWR" in done.stdout


def test_its_names() -> None:
    assert list(memlens.optim.__all__) == sorted(memlens.optim.__all__)
    for name in memlens.optim.__all__:
        assert getattr(memlens.optim, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(memlens.optim, "nonsense")  # noqa: B009


@all_pairs
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_compiled_model(original: Make, ours: Make, set_to_none: bool) -> None:
    def run(make: Make) -> list[Tensor]:
        torch.manual_seed(0)
        model = convolutional()
        # Without code generation, which would need a compiler; gradients come from the traced graph.
        compiled: Any = torch.compile(model, backend="aot_eager")
        optimizer = make(model.parameters(), lr=1e-3, weight_decay=0.1)
        random = torch.Generator().manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad(set_to_none=set_to_none)
            images = torch.randn(4, 3, 8, 8, generator=random)
            compiled(images).square().mean().backward()
            optimizer.step()
        return values(model)

    try:
        assert identical(run(ours), run(original))
    finally:
        torch.compiler.reset()


@all_pairs
def test_a_gradient_scaler_that_skips_steps(original: Make, ours: Make) -> None:
    def run(make: Make, set_to_none: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = convolutional()
        optimizer = make(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        random = torch.Generator().manual_seed(1)
        for step in range(6):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = loss_of(model, random) * (float("inf") if step in (1, 2) else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return values(model)

    for set_to_none in (True, False):
        assert identical(run(ours, set_to_none), run(original, set_to_none))


@all_pairs
def test_autocast(original: Make, ours: Make) -> None:
    def run(make: Make) -> list[Tensor]:
        torch.manual_seed(0)
        model = convolutional()
        optimizer = make(model.parameters(), lr=1e-3)
        random = torch.Generator().manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, random)
            loss.backward()
            optimizer.step()
        return values(model)

    assert identical(run(ours), run(original))


@all_pairs
@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_made_with_create_graph(original: Make, ours: Make) -> None:
    """Such gradients have a history of their own."""

    def run(make: Make) -> list[Tensor]:
        weight = nn.Parameter(torch.arange(1.0, 5.0))
        optimizer = make([weight], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            weight.pow(3).sum().backward(create_graph=True)
            optimizer.step()
        return [weight.detach()]

    assert identical(run(ours), run(original))


@all_pairs
def test_hooks_and_frozen_parameters(original: Make, ours: Make) -> None:
    calls: list[str] = []

    def update(model: nn.Module, optimizer: Optimizer) -> None:
        handles = [
            optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
            optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        ]
        optimizer.step()
        for handle in handles:
            handle.remove()

    expected = train(original, steps=3, update=update)
    assert identical(train(ours, steps=3, update=update), expected)
    assert calls == ["before", "after"] * 6

    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    ours([frozen]).step()
    assert torch.equal(frozen, torch.ones(3))


@each
def test_on_tensors_without_data(make: Make) -> None:
    weights = [nn.Parameter(torch.ones(4, 3, device="meta")), nn.Parameter(torch.ones(3))]
    optimizer = make(weights)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert {key for state in optimizer.state.values() for key in state} == {
        key for state in list(optimizer.state.values())[:1] for key in state
    }
    assert bool((weights[1] < 1).all())


@pytest.mark.gpu
@all_pairs
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(original: Make, ours: Make) -> None:
    def run(make: Make, dtype: torch.dtype, foreach: bool | None) -> list[Tensor]:
        torch.manual_seed(0)
        # One parameter stays on the CPU.
        model = nn.ModuleList([nn.Linear(64, 64).cuda(), nn.Linear(64, 64)]).to(dtype)
        optimizer = make(model.parameters(), lr=1e-3, weight_decay=0.1, foreach=foreach)
        random = torch.Generator().manual_seed(1)
        for _ in range(20):
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=random).to(weight)
            optimizer.step()
        return [value.cpu() for value in values(model)]

    for dtype in (torch.float32, torch.bfloat16):
        for foreach in (None, True, False):
            assert identical(run(ours, dtype, foreach), run(original, dtype, foreach))


@pytest.mark.slow
def test_ddp_and_fsdp2_on_two_processes() -> None:
    """Also with gradients that are views of DDP's buckets, and with parameters not used in a step."""
    found = found_by("ddp_job.py")
    assert len(found) == len(PAIRS) * 3 * 2
    assert all(found.values()), found
