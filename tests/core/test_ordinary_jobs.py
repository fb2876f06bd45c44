"""Ordinary jobs: each is the same under memlens, adds up, and shows what it should show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import (
    Outcome,
    Recording,
    assert_sound,
    most_between,
    now,
    run_both,
)
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import memlens
from memlens.errors import SourceError
from memlens.events import Category, Phase

BATCH, WIDTH = 6, 16
FLOAT = 4
ROW = FLOAT * BATCH * WIDTH
"""Bytes of one activation, of one batch and of one target: all are this wide."""
LAYER = FLOAT * (WIDTH * WIDTH + WIDTH)
"""Bytes of weight and bias of one layer."""

pytestmark = pytest.mark.usefixtures("source")


def stack(layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)


def parameters_of(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def train(
    model: nn.Module,
    done: Outcome,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    steps: int = 3,
) -> None:
    """The plainest loop; notes moments of each step."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    x, target = batch()
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss((forward or model)(x), target)
        done.moments[f"forward {step}"] = now()
        loss.backward()
        done.moments[f"backward {step}"] = now()
        done.losses.append(loss.item())
        del loss
        optimizer.step()
        done.moments[f"step {step}"] = now()
    done.moments["end"] = now()
    done.values = parameters_of(model)
    done.models = [model]


def simple(
    make: Callable[[], nn.Module],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> Callable[[Recording], Outcome]:
    """A job that makes a model and trains it."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = make()
            train(model, done, None if optimizer is None else optimizer(model))
        return done

    return job


# -- activations -------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH))
            for _ in range(3)
        )
        self.use_reentrant = use_reentrant
        self.keeps_random_state = dropout > 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(
                block,
                x,
                use_reentrant=self.use_reentrant,
                preserve_rng_state=self.keeps_random_state,
            )
        return x


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool, tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = Checkpointed(use_reentrant)
            # A reentrant checkpoint needs an input that wants a gradient.
            train(model, done, forward=lambda x: model(x.requires_grad_()))
        return done

    recorded = run_both(job, tmp_path)

    # Kept: the inputs of the second and third block, the last output, and mse_loss's own.
    for step in range(3):
        assert recorded.at(f"forward {step}")[Category.ACTIVATION] == 4 * ROW
    moments = recorded.outcome.moments
    # While a block is recomputed its inner activation is there as well.
    most = most_between(
        recorded.rank, Category.ACTIVATION, moments["forward 1"], moments["backward 1"]
    )
    assert most > 4 * ROW
    assert recorded.at("end")[Category.GRADIENT] == 6 * LAYER + ROW  # the input has one, too
    phases = {
        block.phase
        for block in recorded.rank.allocations_at(recorded.rank.steps()[1].peak_ns, None)
        if block.category is Category.ACTIVATION
    }
    assert phases <= {Phase.FORWARD, Phase.BACKWARD}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_with_dropout_draws_the_same_numbers(
    use_reentrant: bool, tmp_path: Path
) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = Checkpointed(use_reentrant, dropout=0.5)
            train(model, done, forward=lambda x: model(x.requires_grad_()))
        return done

    run_both(job, tmp_path)


def test_autocast_to_bfloat16(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()

            def forward(x: torch.Tensor) -> torch.Tensor:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    result: torch.Tensor = model(x)
                return result.float()

            train(model, done, forward=forward)
        return done

    recorded = run_both(job, tmp_path)

    end = recorded.at("end")
    assert end[Category.WEIGHT] == end[Category.GRADIENT] == 3 * LAYER
    # Saved for backward, in bfloat16: the inputs of all three layers (x is cast) and the weights,
    # of which the second's and third's are needed. The first's lives in autocast's cache and dies
    # with it. In float32: the result, and mse_loss's own.
    in_half = 3 * ROW // 2 + 2 * (FLOAT * WIDTH * WIDTH) // 2
    assert recorded.at("forward 1")[Category.ACTIVATION] == in_half + 2 * ROW


def test_evaluation_without_gradients_between_steps(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            x, target = batch()
            for step in range(3):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
                model.eval()
                with torch.no_grad():
                    for _ in range(2):
                        done.losses.append(nn.functional.mse_loss(model(x), target).item())
                with torch.inference_mode():
                    done.losses.append(model(x).sum().item())
                done.moments[f"evaluated {step}"] = now()
                model.train()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    assert [step.step for step in recorded.rank.steps()] == [0, 1, 2]
    for step in range(3):
        assert recorded.at(f"evaluated {step}") == {
            Category.WEIGHT: 3 * LAYER,
            Category.GRADIENT: 3 * LAYER,
            Category.INPUT: 2 * ROW,
        }


def test_labels_that_only_a_functional_loss_sees(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(3):
                x = torch.randn(BATCH, WIDTH)
                labels = torch.randint(WIDTH, (BATCH,))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), labels)
                done.moments[f"forward {step}"] = now()
                loss.backward()
                optimizer.step()
                done.losses.append(loss.item())
                del x, labels, loss
        done.values = parameters_of(model)
        return done

    recorded = run_both(job, tmp_path)

    for step in range(3):
        assert recorded.at(f"forward {step}")[Category.INPUT] == ROW + 8 * BATCH


def test_dataloader_with_workers(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            data = TensorDataset(torch.randn(4 * BATCH, WIDTH), torch.randn(4 * BATCH, WIDTH))
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            loader = DataLoader(data, BATCH, num_workers=2, multiprocessing_context="fork")
            for _ in range(2):
                for x, target in loader:
                    optimizer.zero_grad()
                    loss = nn.functional.mse_loss(model(x), target)
                    loss.backward()
                    optimizer.step()
                    done.losses.append(loss.item())
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    assert len(recorded.rank.steps()) == 8
    # Batches come in shared memory, which the allocator did not hand out.
    assert recorded.rank.coverage.uncovered_bytes >= 2 * ROW


def test_dataloader_without_workers(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            data = TensorDataset(torch.randn(4 * BATCH, WIDTH), torch.randn(4 * BATCH, WIDTH))
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step, (x, target) in enumerate(DataLoader(data, BATCH, shuffle=True)):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
                done.moments[f"step {step}"] = now()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    # The batch, and the data that it was cut from.
    assert recorded.at("step 2")[Category.INPUT] >= 2 * ROW + 8 * ROW
    names = {
        block.name
        for block in recorded.rank.allocations_at(recorded.outcome.moments["step 2"], None)
        if block.category is Category.INPUT
    }
    assert {"batch.0", "batch.1"} <= names


# -- weights and gradients ---------------------------------------------------------------------


def test_frozen_layers(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = stack(4)
        for layer in (0, 1):
            model[layer].requires_grad_(False)
        return model

    recorded = run_both(simple(make), tmp_path)

    trained = 2 * LAYER
    counters = 4 * FLOAT  # one step counter per trained parameter
    assert recorded.at("end") == {
        Category.WEIGHT: 4 * LAYER,
        Category.GRADIENT: trained,
        Category.OPTIMIZER_STATE: 2 * trained + counters,
        Category.INPUT: 2 * ROW,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_is_converted_after_its_construction(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            done.moments["made"] = now()
            model.to(dtype)
            done.moments["converted"] = now()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            x = torch.randn(BATCH, WIDTH).to(dtype)
            for step in range(2):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                done.moments[f"step {step}"] = now()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    size = 3 * LAYER * dtype.itemsize // FLOAT
    assert recorded.at("made") == {Category.WEIGHT: 3 * LAYER}
    assert recorded.at("converted") == {Category.WEIGHT: size}
    for step in range(2):
        held = recorded.at(f"step {step}")
        assert held[Category.WEIGHT] == held[Category.GRADIENT] == size


def test_a_model_half_is_half(tmp_path: Path) -> None:
    recorded = run_both(simple(lambda: stack().half().float()), tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 3 * LAYER


@pytest.mark.parametrize("before", [False, True], ids=["inside", "before"])
def test_a_conversion_that_swaps_tensors(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch refuses to swap a tensor that has a weak reference, from whomever.

    Parameters that are wrapper subclasses (DTensor, quantised weights) are always converted this way.
    """
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True, raising=True)

    def job(record: Recording) -> Outcome:
        done = Outcome()
        model = stack() if before else None
        with record():
            model = model or stack()
            model.double()
            done.moments["double"] = now()
            model.float()
            train(model, done)
        model.double()  # the session is over, and still there
        model.float()
        return done

    recorded = run_both(job, tmp_path)

    assert recorded.at("double") == {Category.WEIGHT: 2 * 3 * LAYER}
    assert recorded.at("end")[Category.WEIGHT] == 3 * LAYER


def test_scripted_modules(tmp_path: Path) -> None:
    recorded = run_both(simple(lambda: torch.jit.script(stack())), tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 3 * LAYER
    assert recorded.at("end")[Category.GRADIENT] == 3 * LAYER


def test_a_model_made_without_memory_and_then_given_some(tmp_path: Path) -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            model = stack()
        model.to_empty(device="cpu")
        for layer in model:
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
        return model

    recorded = run_both(simple(make), tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 3 * LAYER


def test_lazy_modules(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = nn.Sequential(nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH))
            model(torch.randn(BATCH, WIDTH))
            train(model, done)
        return done

    recorded = run_both(job, tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 2 * LAYER


def test_buffers_are_weights(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))

    recorded = run_both(simple(make), tmp_path)

    norm = 2 * FLOAT * WIDTH
    statistics = 2 * FLOAT * WIDTH + 8  # mean, variance and an int64 counter
    assert recorded.at("end")[Category.WEIGHT] == LAYER + norm + statistics
    assert recorded.at("end")[Category.GRADIENT] == LAYER + norm


@pytest.mark.filterwarnings("error")
def test_a_buffer_that_is_computed_from_a_parameter(tmp_path: Path) -> None:
    """Torch warns of anyone who asks it for its gradient, and a job may make warnings errors."""

    class Scaled(nn.Module):
        scaled: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
            self.register_buffer("scaled", torch.zeros(WIDTH, WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.scaled = self.weight * 2
            return x @ self.scaled

    recorded = run_both(simple(Scaled), tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 2 * FLOAT * WIDTH * WIDTH


@pytest.mark.parametrize("before", [False, True], ids=["inside", "before"])
def test_a_copy_for_a_moving_average(before: bool, tmp_path: Path) -> None:
    """The copy is never called; deepcopy does not register its parameters anew."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        model = stack() if before else None
        average = copy.deepcopy(model) if before else None
        with record():
            model = model or stack()
            average = average or copy.deepcopy(model)
            done.moments["copied"] = now()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            x, target = batch()
            for step in range(3):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
                with torch.no_grad():
                    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                        kept.lerp_(new, 0.1)
                done.moments[f"step {step}"] = now()
        done.values = parameters_of(model) + parameters_of(average)
        done.models = [model, average]
        return done

    recorded = run_both(job, tmp_path)

    assert recorded.at("copied") == {Category.WEIGHT: 2 * 3 * LAYER}
    for step in range(3):
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: 2 * 3 * LAYER,
            Category.GRADIENT: 3 * LAYER,
            Category.INPUT: 2 * ROW,
        }


def test_averaged_model_of_torch(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            average = torch.optim.swa_utils.AveragedModel(model)
            train(model, done)
            average.update_parameters(model)
            done.moments["end"] = now()
            done.values += parameters_of(average)
            done.models.append(average)
        return done

    recorded = run_both(job, tmp_path)

    counter = 8  # n_averaged, an int64
    assert recorded.at("end")[Category.WEIGHT] == 2 * 3 * LAYER + counter


def test_parameters_that_are_views_of_one_block(tmp_path: Path) -> None:
    """As in a flat parameter: its bytes count once."""

    def make() -> nn.Module:
        model = stack()
        flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        begin = 0
        for parameter in model.parameters():
            end = begin + parameter.numel()
            parameter.data = flat[begin:end].view_as(parameter)
            begin = end
        return model

    recorded = run_both(simple(make), tmp_path)

    assert recorded.at("end")[Category.WEIGHT] == 3 * LAYER


@pytest.mark.parametrize("when", ["before the session", "inside the session"])
def test_gradients_freed_layer_by_layer_in_a_hook(when: str, tmp_path: Path) -> None:
    """The hook updates the parameter and drops its gradient, so they are never there together."""

    def update(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        with torch.no_grad():
            parameter.sub_(parameter.grad, alpha=0.1)
        parameter.grad = None

    def job(record: Recording) -> Outcome:
        done = Outcome()
        model = stack() if when == "before the session" else None
        handles: list[Any] = []

        def hook(target: nn.Module) -> None:
            for parameter in target.parameters():
                handles.append(parameter.register_post_accumulate_grad_hook(update))

        if model is not None:
            hook(model)
        with record():
            if model is None:
                model = stack()
                hook(model)
            x, target = batch()
            for step in range(3):
                loss = nn.functional.mse_loss(model(x), target)
                done.moments[f"forward {step}"] = now()
                loss.backward()
                done.moments[f"backward {step}"] = now()
                done.losses.append(loss.item())
                del loss
        for handle in handles:
            handle.remove()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    moments = recorded.outcome.moments
    weight, bias = FLOAT * WIDTH * WIDTH, FLOAT * WIDTH
    for step in range(3):
        assert Category.GRADIENT not in recorded.at(f"backward {step}")
        most = most_between(
            recorded.rank,
            Category.GRADIENT,
            moments[f"forward {step}"],
            moments[f"backward {step}"],
        )
        # Those of one layer may be there together, and no more.
        assert weight <= most <= weight + bias


def test_sparse_gradients(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = nn.Embedding(100, WIDTH, sparse=True)
            optimizer = torch.optim.SparseAdam(list(model.parameters()))
            tokens = torch.randint(100, (BATCH,))
            for step in range(2):
                optimizer.zero_grad()
                model(tokens).square().mean().backward()
                done.moments[f"backward {step}"] = now()
                optimizer.step()
                done.moments[f"step {step}"] = now()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    # An index (int64) and a row for each token. The indices may share the tokens' own storage.
    rows = FLOAT * BATCH * WIDTH
    assert rows <= recorded.at("backward 1")[Category.GRADIENT] <= rows + 8 * BATCH
    assert recorded.at("step 1")[Category.OPTIMIZER_STATE] == 2 * FLOAT * 100 * WIDTH


# -- other ways to a gradient ------------------------------------------------------------------


def test_functional_training_without_modules(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            weights = [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(2)]
            optimizer = torch.optim.AdamW(weights)
            x, target = batch()
            for step in range(3):
                optimizer.zero_grad()
                hidden = torch.tanh(x @ weights[0])
                loss = nn.functional.mse_loss(hidden @ weights[1], target)
                del hidden
                done.moments[f"forward {step}"] = now()
                loss.backward()
                done.losses.append(loss.item())
                del loss
                done.moments[f"backward {step}"] = now()
                optimizer.step()
                done.moments[f"step {step}"] = now()
        done.values = [weight.detach() for weight in weights]
        return done

    recorded = run_both(job, tmp_path)

    size = 2 * FLOAT * WIDTH * WIDTH
    state = 2 * size + 2 * FLOAT
    for step in range(3):
        held = recorded.at(f"step {step}")
        assert held[Category.WEIGHT] == held[Category.GRADIENT] == size
        assert held[Category.OPTIMIZER_STATE] == state
    # tanh saves its result, which is the second product's operand; mse_loss saves two of this width.
    # Without modules nothing tells x and target from what the first step computed.
    held = recorded.at("forward 2")
    assert held[Category.ACTIVATION] + held.get(Category.INPUT, 0) == 3 * ROW + 2 * ROW


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_from_autograd_grad(create_graph: bool, tmp_path: Path) -> None:
    """They are never in any `.grad`."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            weights = list(model.parameters())
            x, target = batch()
            for step in range(3):
                loss = nn.functional.mse_loss(model(x), target)
                done.losses.append(loss.item())
                gradients = torch.autograd.grad(loss, weights, create_graph=create_graph)
                del loss
                done.moments[f"backward {step}"] = now()
                with torch.no_grad():
                    for weight, gradient in zip(weights, gradients, strict=True):
                        weight.sub_(gradient, alpha=0.1)
                del gradients, gradient
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    for step in range(3):
        held = recorded.at(f"backward {step}")
        assert held[Category.WEIGHT] == 3 * LAYER
        if create_graph:  # parts of the gradients' own graph are alive as well
            assert held[Category.GRADIENT] >= 3 * LAYER
        else:
            assert held[Category.GRADIENT] == 3 * LAYER


def test_double_backward(tmp_path: Path) -> None:
    """A gradient penalty: the norm of the gradient at the input is part of the loss."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
            optimizer = torch.optim.Adam(model.parameters())
            for step in range(3):
                x = torch.randn(BATCH, WIDTH, requires_grad=True)
                optimizer.zero_grad()
                score = model(x).sum()
                (slope,) = torch.autograd.grad(score, x, create_graph=True)
                loss = score + (slope.norm(dim=1) - 1).square().mean()
                loss.backward()
                done.losses.append(loss.item())
                optimizer.step()
                del score, slope, loss
                done.moments[f"step {step}"] = now()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    size = LAYER + FLOAT * (WIDTH + 1)
    for step in range(3):
        held = recorded.at(f"step {step}")
        assert held[Category.WEIGHT] == size
        # Of the input there is a gradient as well.
        assert held[Category.GRADIENT] == size + ROW
    assert [step.step for step in recorded.rank.steps()] == [0, 1, 2]


def test_functional_transforms(tmp_path: Path) -> None:
    """torch.func: parameters are handed to the model, and gradients come as a dictionary."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            x, target = batch()

            def loss_of(weights: dict[str, torch.Tensor]) -> torch.Tensor:
                result = torch.func.functional_call(model, weights, (x,))
                return nn.functional.mse_loss(result, target)

            weights = {name: value.detach() for name, value in model.named_parameters()}
            for _ in range(3):
                gradients, loss = torch.func.grad_and_value(loss_of)(weights)
                done.losses.append(loss.item())
                weights = {name: weights[name] - 0.1 * gradients[name] for name in weights}
        done.values = list(weights.values())
        done.models = [model]
        return done

    run_both(job, tmp_path)


# -- the job's own profiler --------------------------------------------------------------------


def test_the_job_s_own_profiler_inside_the_session(source: str, tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            x, target = batch()

            def step() -> None:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()

            step()
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profiler:
                step()
            assert any(event.key == "aten::addmm" for event in profiler.key_averages())
            step()
            done.moments["end"] = now()
        done.values = parameters_of(model)
        done.models = [model]
        return done

    if source == "hook":  # both can record at the same time
        recorded = run_both(job, tmp_path)
        rank, end = recorded.rank, recorded.at("end")
    else:
        session = memlens.profile(out=tmp_path / "run")
        done = job(lambda: session)
        rank = session.capture.ranks[0]
        assert_sound(rank, complete=False)
        assert rank.coverage.blind_ns > 0
        assert not rank.coverage.complete
        assert [text for text in rank.coverage.problems if "torch.profiler" in text]
        end = {name: size for name, size in rank.categories_at(done.moments["end"]).items() if size}

    assert end == {
        Category.WEIGHT: 3 * LAYER,
        Category.GRADIENT: 3 * LAYER,
        Category.INPUT: 2 * ROW,
    }
    # Torch's profiler can not serve two: of the step in the middle there is nothing.
    assert [step.step for step in rank.steps()] == ([0, 1, 2] if source == "hook" else [0, 2])


def test_the_job_s_own_profiler_around_the_session(source: str, tmp_path: Path) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        session = memlens.profile(out=tmp_path / "run")
        if source == "hook":
            with session:
                stack()(batch()[0])
        else:
            with pytest.raises(SourceError, match=r"torch\.profiler|the job's own"):
                session.start()
            assert not (tmp_path / "run").exists()
    if source == "hook":
        assert_sound(session.capture.ranks[0])
