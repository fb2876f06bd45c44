"""torch.compile: the job compiles what it would have compiled, and the bytes still add up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import Outcome, Recorded, Recording, now, run_both
from torch import nn
from torch._dynamo.mutation_guard import install_generation_tagging_init
from torch._dynamo.utils import counters

from memlens.events import Category

BATCH, WIDTH = 6, 16
FLOAT = 4
ROW = FLOAT * BATCH * WIDTH
LAYER = FLOAT * (WIDTH * WIDTH + WIDTH)

BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
]

# Dynamo patches nn.Module for good when it is first used; that is not our doing.
install_generation_tagging_init()

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.second(torch.relu(self.first(x))))


def compile_statistics() -> dict[str, int]:
    """What dynamo counted: graphs, breaks, recompilations."""
    return {
        f"{group}.{name}": count
        for group in ("stats", "frames", "graph_break", "recompiles", "unimplemented")
        for name, count in counters[group].items()
    }


@pytest.fixture
def compilations() -> Any:
    """Statistics of each run of a job, in their order."""
    found: list[dict[str, int]] = []
    yield found
    torch._dynamo.reset()


def compiled_job(
    found: list[dict[str, int]],
    compiled: Callable[[nn.Module], Any],
    *,
    when: str = "inside",
    batches: tuple[int, ...] = (BATCH,) * 4,
) -> Callable[[Recording], Outcome]:
    def job(record: Recording) -> Outcome:
        torch._dynamo.reset()
        counters.clear()
        done = Outcome()
        model = nn.Sequential(Block(), Block()) if when == "before" else None
        fast = compiled(model) if model is not None else None
        data = [(torch.randn(size, WIDTH), torch.randn(size, WIDTH)) for size in batches]
        if fast is not None:  # compiled, and warm, when the session begins
            nn.functional.mse_loss(fast(data[0][0]), data[0][1])
        with record():
            if model is None:
                model = nn.Sequential(Block(), Block())
                fast = compiled(model)
            assert fast is not None
            data = [(x.clone(), target.clone()) for x, target in data]
            optimizer = torch.optim.AdamW(model.parameters())
            for step, (x, target) in enumerate(data):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(fast(x), target)
                loss.backward()
                done.losses.append(loss.item())
                del loss
                optimizer.step()
                done.moments[f"step {step}"] = now()
        found.append(compile_statistics())
        done.values = [value.detach() for value in model.parameters()]
        done.models = [model]
        return done

    return job


def check(recorded: Recorded, found: list[dict[str, int]], steps: int = 4) -> None:
    plain, profiled = found
    assert plain["stats.unique_graphs"] >= 1
    assert profiled == plain
    size = 4 * LAYER
    for step in range(1, steps):
        held = recorded.at(f"step {step}")
        assert held[Category.WEIGHT] == held[Category.GRADIENT] == size
        assert held[Category.OPTIMIZER_STATE] == 2 * size + 8 * FLOAT
    assert [step.step for step in recorded.rank.steps()] == list(range(steps))


@pytest.mark.parametrize("when", ["inside", "before"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model(
    backend: str, when: str, compilations: list[dict[str, int]], tmp_path: Path
) -> None:
    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend)

    recorded = run_both(compiled_job(compilations, compiled, when=when), tmp_path)

    check(recorded, compilations)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_graph_and_changing_shapes(
    backend: str, compilations: list[dict[str, int]], tmp_path: Path
) -> None:
    """fullgraph=True raises at any graph break; a second shape makes dynamic ones."""

    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend, fullgraph=True)

    job = compiled_job(compilations, compiled, batches=(4, 6, 8, 10))
    recorded = run_both(job, tmp_path)

    check(recorded, compilations)


def test_modules_compiled_one_by_one(compilations: list[dict[str, int]], tmp_path: Path) -> None:
    """`module.compile()`, as for the layers of a large model: hooks run around the compiled code."""

    def compiled(model: nn.Module) -> Any:
        for block in model:  # type: ignore[attr-defined]
            block.compile(backend="aot_eager", fullgraph=True)
        return model

    recorded = run_both(compiled_job(compilations, compiled), tmp_path)

    check(recorded, compilations)


def test_a_compiled_function_that_holds_the_whole_step(
    compilations: list[dict[str, int]], tmp_path: Path
) -> None:
    """Model and loss in one graph, with the model's own hooks traced."""

    def compiled(model: nn.Module) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = model(x).clone()
            return result

        return torch.compile(forward, backend="aot_eager", fullgraph=True)

    recorded = run_both(compiled_job(compilations, compiled), tmp_path)

    check(recorded, compilations)


def test_names_do_not_show_the_wrapper(compilations: list[dict[str, int]], tmp_path: Path) -> None:
    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend="aot_eager")

    recorded = run_both(compiled_job(compilations, compiled), tmp_path)

    weights = {
        block.name
        for block in recorded.rank.allocations_at(recorded.outcome.moments["step 3"], None)
        if block.category is Category.WEIGHT
    }
    assert weights == {
        f"{block}.{layer}.{name}"
        for block in (0, 1)
        for layer in ("first", "second")
        for name in ("weight", "bias")
    }
