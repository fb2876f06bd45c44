"""Optimizers as people use them: several, with groups, with closures, with state in odd places."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.training import Outcome, Recorded, Recording, most_between, now, run_both
from torch import nn

from memlens.events import Category, Phase

BATCH, WIDTH = 6, 16
FLOAT = 4
ROW = FLOAT * BATCH * WIDTH
LAYER = FLOAT * (WIDTH * WIDTH + WIDTH)
"""Bytes of weight and bias of one layer."""

pytestmark = pytest.mark.usefixtures("source")


def stack(layers: int = 2) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))


def values_of(*models: nn.Module) -> list[torch.Tensor]:
    return [value.detach() for model in models for value in model.parameters()]


def names_at(recorded: Recorded, moment: str, category: Category) -> set[str]:
    return {
        block.name
        for block in recorded.rank.allocations_at(recorded.outcome.moments[moment], None)
        if block.category is category
    }


def steps_of(recorded: Recorded) -> list[int]:
    return [step.step for step in recorded.rank.steps()]


def one_model(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    update: Callable[[torch.optim.Optimizer], Any] = lambda optimizer: optimizer.step(),
    steps: int = 3,
    layers: int = 2,
) -> Callable[[Recording], Outcome]:
    """A job of one model and one optimizer."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack(layers)
            optimizer = make_optimizer(model)
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
            for step in range(steps):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                done.moments[f"before step {step}"] = now()
                update(optimizer)
                done.moments[f"step {step}"] = now()
        done.values = values_of(model)
        done.models = [model]
        return done

    return job


# -- several -----------------------------------------------------------------------------------


def test_two_optimizers_that_take_turns_make_one_step(tmp_path: Path) -> None:
    """A generator and a discriminator."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            generator, discriminator = stack(), nn.Sequential(*stack(), nn.Linear(WIDTH, 1))
            first = torch.optim.Adam(generator.parameters())
            second = torch.optim.Adam(discriminator.parameters())
            for step in range(4):
                noise, real = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
                second.zero_grad()
                fake = generator(noise)
                loss = discriminator(fake.detach()).mean() - discriminator(real).mean()
                loss.backward()
                second.step()
                first.zero_grad()
                score = -discriminator(fake).mean()
                score.backward()
                first.step()
                done.losses += [loss.item(), score.item()]
                del noise, real, fake, loss, score
                done.moments[f"step {step}"] = now()
        done.values = values_of(generator, discriminator)
        done.models = [generator, discriminator]
        return done

    recorded = run_both(job, tmp_path)

    assert steps_of(recorded) == [0, 1, 2, 3]
    weights = 4 * LAYER + FLOAT * (WIDTH + 1)
    counters = (4 + 6) * FLOAT
    for step in range(4):
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: weights,
            Category.GRADIENT: weights,
            Category.OPTIMIZER_STATE: 2 * weights + counters,
        }


def test_an_optimizer_that_is_never_used_does_not_stop_the_count(tmp_path: Path) -> None:
    spare: list[torch.optim.Optimizer] = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        spare.append(torch.optim.SGD(model.parameters(), lr=0.1))
        return torch.optim.SGD(model.parameters(), lr=0.1)

    recorded = run_both(one_model(make, steps=6), tmp_path)

    # That it is not used shows when the other steps a second time, which then ends two steps at once
    # (the second has no events); from there on the count is right.
    assert steps_of(recorded) == [0, 2, 3, 4, 5]


def test_parameter_groups(tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        weights = [value for value in model.parameters() if value.dim() > 1]
        biases = [value for value in model.parameters() if value.dim() == 1]
        return torch.optim.AdamW(
            [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 1e-2}]
        )

    recorded = run_both(one_model(make), tmp_path)

    assert recorded.at("step 1") == {
        Category.WEIGHT: 2 * LAYER,
        Category.GRADIENT: 2 * LAYER,
        Category.OPTIMIZER_STATE: 2 * 2 * LAYER + 4 * FLOAT,
        Category.INPUT: 2 * ROW,
    }
    assert names_at(recorded, "step 1", Category.OPTIMIZER_STATE) == {
        f"{kind} of {layer}.{name}"
        for kind in ("step", "exp_avg", "exp_avg_sq")
        for layer in (0, 1)
        for name in ("weight", "bias")
    }


def test_a_schedule_and_clipping(tmp_path: Path) -> None:
    schedules: list[Any] = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.parameters())
        schedules[:] = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]
        return optimizer

    def update(optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)
        optimizer.step()
        schedules[0].step()

    recorded = run_both(one_model(make, update), tmp_path)

    assert steps_of(recorded) == [0, 1, 2]
    assert recorded.at("step 2")[Category.GRADIENT] == 2 * LAYER


def test_a_gradient_scaler_that_skips_a_step(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
            for step in range(4):
                optimizer.zero_grad()
                scale = float("inf") if step == 1 else 1.0
                loss = nn.functional.mse_loss(model(x), target) * scale
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                del loss
                done.moments[f"step {step}"] = now()
        done.values = values_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    # The skipped one did not happen, for the optimizer.
    assert steps_of(recorded) == [0, 1, 2]
    assert recorded.at("step 3")[Category.WEIGHT] == 2 * LAYER
    assert recorded.at("step 3")[Category.GRADIENT] == 2 * LAYER


# -- closures and hooks ------------------------------------------------------------------------


def test_lbfgs_calls_the_model_within_its_step(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=3)
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), target)
                done.moments.setdefault("forward", now())
                loss.backward()
                done.losses.append(loss.item())
                return loss

            for step in range(3):
                done.moments[f"before step {step}"] = now()
                optimizer.step(closure)
                done.moments[f"step {step}"] = now()
        done.values = values_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    assert len(recorded.outcome.losses) > 3  # several calls of the closure in a step
    assert steps_of(recorded) == [0, 1, 2]
    end = recorded.at("step 2")
    assert end[Category.WEIGHT] == end[Category.GRADIENT] == 2 * LAYER
    # State, each as large as all parameters: a direction, the gradient before, and up to three pairs
    # of differences.
    assert end[Category.OPTIMIZER_STATE] >= 2 * 2 * LAYER
    assert end[Category.OPTIMIZER_STATE] <= (2 + 2 * 3) * 2 * LAYER + 1024
    # Gradients come and go within a step, at the same addresses: each is known by its name.
    assert names_at(recorded, "step 2", Category.GRADIENT) == {
        f"{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")
    }
    phases = {step.phase for step in recorded.rank.allocations_at(None, None)}
    assert Phase.OPTIMIZER in phases
    inside = [recorded.outcome.moments[name] for name in ("before step 1", "step 1")]
    assert most_between(recorded.rank, Category.ACTIVATION, *inside) > 0


def test_an_optimizer_in_the_backward(tmp_path: Path) -> None:
    """One optimizer per parameter steps as soon as its gradient is there, and drops it."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack(3)
            optimizers = {
                parameter: torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
                for parameter in model.parameters()
            }

            def update(parameter: torch.Tensor) -> None:
                assert isinstance(parameter, nn.Parameter)
                optimizers[parameter].step()
                optimizers[parameter].zero_grad()

            handles = [
                parameter.register_post_accumulate_grad_hook(update)
                for parameter in model.parameters()
            ]
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
            for step in range(3):
                done.moments[f"begin {step}"] = now()
                loss = nn.functional.mse_loss(model(x), target)
                loss.backward()
                done.losses.append(loss.item())
                del loss
                done.moments[f"step {step}"] = now()
        for handle in handles:
            handle.remove()
        done.values = values_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    for step in range(3):
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: 3 * LAYER,
            Category.OPTIMIZER_STATE: 3 * LAYER,
            Category.INPUT: 2 * ROW,
        }
        inside = [recorded.outcome.moments[name] for name in (f"begin {step}", f"step {step}")]
        most = most_between(recorded.rank, Category.GRADIENT, *inside)
        assert FLOAT * WIDTH * WIDTH <= most <= LAYER
    assert steps_of(recorded) == [0, 1, 2]


def test_an_optimizer_of_optimizers(tmp_path: Path) -> None:
    """A wrapper that steps another one within its own step is one step, not two."""

    class Outer(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups[0]["params"], {})
            self.inner = inner

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.inner.step()

    recorded = run_both(
        one_model(lambda model: Outer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))),
        tmp_path,
    )

    assert steps_of(recorded) == [0, 1, 2]
    assert recorded.at("step 1")[Category.OPTIMIZER_STATE] == 2 * LAYER


def test_a_subclass_that_calls_the_step_of_its_base(tmp_path: Path) -> None:
    """torch wraps both methods, so hooks run twice, one pair within the other."""

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    recorded = run_both(
        one_model(lambda model: Counting(model.parameters(), lr=0.1, momentum=0.9)), tmp_path
    )

    assert steps_of(recorded) == [0, 1, 2]
    assert recorded.at("step 1")[Category.OPTIMIZER_STATE] == 2 * LAYER


# -- state in odd places -----------------------------------------------------------------------


def test_master_weights_made_by_hand(tmp_path: Path) -> None:
    """A bfloat16 model, updated through float32 copies that only the optimizer holds."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack().bfloat16()
            masters = [nn.Parameter(value.detach().clone().float()) for value in model.parameters()]
            optimizer = torch.optim.AdamW(masters)
            x = torch.randn(BATCH, WIDTH).bfloat16()
            for step in range(3):
                loss = model(x).square().mean()
                loss.backward()
                done.losses.append(loss.item())
                del loss
                for master, value in zip(masters, model.parameters(), strict=True):
                    assert value.grad is not None
                    master.grad, value.grad = value.grad.float(), None
                done.moments[f"before step {step}"] = now()
                optimizer.step()
                with torch.no_grad():
                    for master, value in zip(masters, model.parameters(), strict=True):
                        value.copy_(master)
                        master.grad = None
                done.moments[f"step {step}"] = now()
        done.values = values_of(model) + [master.detach() for master in masters]
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    size = 2 * LAYER
    for step in range(3):
        held = recorded.at(f"before step {step}")
        assert held[Category.WEIGHT] == size // 2
        assert held[Category.MASTER_WEIGHT] == size
        assert held[Category.GRADIENT] == size
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: size // 2,
            Category.MASTER_WEIGHT: size,
            Category.OPTIMIZER_STATE: 2 * size + 4 * FLOAT,
            Category.INPUT: ROW // 2,
        }


class Halves(torch.Tensor):
    """A wrapper subclass as quantised states are: no storage of its own, two tensors inside."""

    codes: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Halves:
        made = torch.Tensor._make_wrapper_subclass(
            cls, codes.shape, dtype=torch.float32, device=codes.device
        )
        made.codes, made.scale = codes, scale
        assert isinstance(made, Halves)
        return made

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        pass

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, torch.Tensor], meta: None, size: Any, stride: Any
    ) -> Halves:
        return cls(inner["codes"], inner["scale"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func} on quantised state")

    def value(self) -> torch.Tensor:
        return self.codes.float() * self.scale

    def store(self, value: torch.Tensor) -> None:
        self.scale.copy_(value.abs().max() / 127 + 1e-12)
        self.codes.copy_((value / self.scale).round())


class Quantised(torch.optim.Optimizer):
    """SGD whose momentum is kept in 8 bits."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                codes = torch.zeros_like(parameter, dtype=torch.int8)
                state["momentum"] = Halves(codes, torch.ones(1))
            momentum = state["momentum"].value().mul_(0.9).add_(parameter.grad)
            state["momentum"].store(momentum)
            parameter.sub_(momentum, alpha=0.1)


def test_state_in_a_wrapper_subclass(tmp_path: Path) -> None:
    recorded = run_both(one_model(lambda model: Quantised(model.parameters())), tmp_path)

    # One byte per element and a scale per parameter.
    state = 2 * LAYER // FLOAT + 4 * FLOAT
    for step in range(3):
        assert recorded.at(f"step {step}") == {
            Category.WEIGHT: 2 * LAYER,
            Category.GRADIENT: 2 * LAYER,
            Category.OPTIMIZER_STATE: state,
            Category.INPUT: 2 * ROW,
        }
    names = names_at(recorded, "step 2", Category.OPTIMIZER_STATE)
    assert {"momentum.codes of 0.weight", "momentum.scale of 0.weight"} <= names


class Projector:
    """As GaLore's: an object that keeps a matrix."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.matrix: torch.Tensor | None = None

    def project(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.matrix is None:
            self.matrix = torch.randn(gradient.shape[1], self.rank)
        return gradient @ self.matrix

    def back(self, value: torch.Tensor) -> torch.Tensor:
        assert self.matrix is not None
        return value @ self.matrix.T


class LowRank(torch.optim.Optimizer):
    """Momentum in a space of few dimensions."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["projector"] = Projector(rank=2)
            small = state["projector"].project(parameter.grad)
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(small)
            state["momentum"].mul_(0.9).add_(small)
            parameter.sub_(state["projector"].back(state["momentum"]), alpha=0.1)


def test_state_that_hides_in_an_object(tmp_path: Path) -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return LowRank(value for value in model.parameters() if value.dim() == 2)

    recorded = run_both(one_model(make), tmp_path)

    # A projection matrix and a projected momentum, both of width 2, for each weight matrix.
    state = 2 * (FLOAT * WIDTH * 2 + FLOAT * WIDTH * 2)
    for step in range(3):
        assert recorded.at(f"step {step}")[Category.OPTIMIZER_STATE] == state
    assert names_at(recorded, "step 2", Category.OPTIMIZER_STATE) == {
        f"{kind} of {layer}.weight" for kind in ("projector.matrix", "momentum") for layer in (0, 1)
    }


class Bare(torch.optim.Optimizer):
    """Keeps a tensor, and not a dictionary, for each parameter; and a list that belongs to none."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        state: Any = self.state
        state.setdefault("norms", [torch.zeros(8), (torch.zeros(8), 3)])
        for parameter in self.param_groups[0]["params"]:
            if parameter not in state:
                state[parameter] = torch.zeros_like(parameter)
            parameter.sub_(state[parameter].mul_(0.9).add_(parameter.grad), alpha=0.1)


def test_state_that_is_no_dictionary(tmp_path: Path) -> None:
    recorded = run_both(one_model(lambda model: Bare(model.parameters())), tmp_path)

    state = 2 * LAYER + 2 * FLOAT * 8
    for step in range(3):
        assert recorded.at(f"step {step}")[Category.OPTIMIZER_STATE] == state
    names = names_at(recorded, "step 2", Category.OPTIMIZER_STATE)
    assert {"state of 0.weight", "state of 1.bias", "state.0", "state.1.0"} <= names


def test_state_that_is_loaded_from_a_checkpoint(tmp_path: Path) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            model = stack()
            optimizer = torch.optim.AdamW(model.parameters())
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
            for step in range(4):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), target).backward()
                optimizer.step()
                done.moments[f"step {step}"] = now()
                if step == 1:
                    torch.save(
                        [model.state_dict(), optimizer.state_dict()], tmp_path / "checkpoint"
                    )
                    weights, state = torch.load(tmp_path / "checkpoint")
                    model.load_state_dict(weights)
                    optimizer.load_state_dict(state)
                    del weights, state
                    done.moments["loaded"] = now()
        done.values = values_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    expected = {
        Category.WEIGHT: 2 * LAYER,
        Category.GRADIENT: 2 * LAYER,
        Category.OPTIMIZER_STATE: 2 * 2 * LAYER + 4 * FLOAT,
        Category.INPUT: 2 * ROW,
    }
    for moment in ("step 0", "loaded", "step 2", "step 3"):
        assert recorded.at(moment) == expected, moment


def test_one_training_after_the_other_in_one_session(tmp_path: Path) -> None:
    """A sweep: objects and addresses of the first come back in the second."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        with record():
            for trial in range(3):
                model = stack()
                optimizer = torch.optim.AdamW(model.parameters())
                x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
                for _ in range(2):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(model(x), target).backward()
                    optimizer.step()
                done.moments[f"trial {trial}"] = now()
                done.losses += next(model.parameters()).flatten().tolist()
                if trial < 2:
                    del model, optimizer, x, target
                done.moments[f"after {trial}"] = now()
        done.values = values_of(model)
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    assert steps_of(recorded) == list(range(6))
    for trial in range(2):
        assert recorded.at(f"trial {trial}") == {
            Category.WEIGHT: 2 * LAYER,
            Category.GRADIENT: 2 * LAYER,
            Category.OPTIMIZER_STATE: 2 * 2 * LAYER + 4 * FLOAT,
            Category.INPUT: 2 * ROW,
        }
        assert recorded.at(f"after {trial}") == {}
        assert all(
            name.startswith(("exp_avg of", "exp_avg_sq of", "step of"))
            for name in names_at(recorded, f"trial {trial}", Category.OPTIMIZER_STATE)
        )
