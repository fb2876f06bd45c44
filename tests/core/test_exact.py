"""A linear stack whose every byte follows from its shapes: each category, at each moment.

The job: `y = W3(W2(W1 x))` without activation functions, `mse_loss(y, target).backward()`, `step()`.
Everything is float32, so sizes are 4 bytes times numbers of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.support.training import Outcome, Recorded, Recording, most_between, now, run_both
from torch import nn

from memlens.events import Category, Phase

FLOAT = 4
BATCH, IN, HIDDEN, OUT = 5, 12, 24, 7
SHAPES = ((IN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, OUT))

PARAMETERS = [size for inner, outer in SHAPES for size in (FLOAT * inner * outer, FLOAT * outer)]
"""Bytes of weight and bias of each layer, in the order of `model.parameters()`."""
P = sum(PARAMETERS)
"""Bytes of all parameters."""
COUNT = len(PARAMETERS)

X, TARGET, Y = FLOAT * BATCH * IN, FLOAT * BATCH * OUT, FLOAT * BATCH * OUT
SAVED = 2 * FLOAT * BATCH * HIDDEN
"""Linear saves its input (and its weight, which is there anyway): x, and two hidden activations."""
LOSS = Y
"""mse_loss computes squared differences and reduces them in place: its one-element result keeps the
storage of all of them."""
SCALAR = 8 + 4
"""A Python number in an operation becomes a float64 (or int64) tensor, and then one of the type
of the other operand: 8 bytes and 4 bytes, until the operation is done."""
STEP = FLOAT
"""Adam and Adagrad count steps in a float32 tensor of one element per parameter."""


def make_model() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(inner, outer) for inner, outer in SHAPES))


def pairs(sizes: list[int]) -> Iterable[tuple[int, int]]:
    """(previous, own) bytes of each parameter, the first one after nothing."""
    return zip([0, *sizes[:-1]], sizes, strict=True)


@dataclass(frozen=True)
class Case:
    """An optimizer, and what it takes by its source code in torch/optim."""

    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    state: int
    """Bytes of state, from the first step on."""
    temporary: int
    """Most bytes of temporaries alive at one time within a later step."""
    first_temporary: int | None = None
    """The same within the first step, if it is another."""
    early_state: bool = False
    """The constructor makes the state, not the first step."""


ADAM_STATE = 2 * P + COUNT * STEP
LARGEST = max(PARAMETERS)

CASES: dict[str, Case] = {
    # p.add_(grad, alpha=-lr) needs no temporary: alpha is not a tensor.
    "sgd": Case(lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
    # One foreach call takes all gradients at once, but still updates in place.
    "sgd foreach": Case(lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), 0, 0),
    # grad = grad.add(p): one parameter at a time, the last one freed when `grad` is bound to the
    # next parameter's gradient.
    "sgd weight decay": Case(lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), 0, LARGEST),
    # The same for all parameters at once.
    "sgd weight decay foreach": Case(
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, foreach=True), 0, P
    ),
    # The first step clones the gradients; later ones do buf.mul_(momentum), with a number.
    "sgd momentum": Case(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), P, SCALAR, first_temporary=0
    ),
    "sgd momentum foreach": Case(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
        P,
        SCALAR,
        first_temporary=0,
    ),
    "sgd momentum fused": Case(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True), P, 0
    ),
    # denom = (exp_avg_sq.sqrt() / number).add_(eps): while the quotient is made, the root, the number
    # and the `denom` of the parameter before are alive.
    "adamw": Case(
        lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
        ADAM_STATE,
        max(before + 2 * own + SCALAR for before, own in pairs(PARAMETERS)),
    ),
    # Roots of all second moments at once, then divided in place by numbers.
    "adamw foreach": Case(
        lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True), ADAM_STATE, P + SCALAR
    ),
    # amsgrad keeps a third moment.
    "adamw amsgrad foreach": Case(
        lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True, amsgrad=True),
        ADAM_STATE + P,
        P + SCALAR,
    ),
    # One kernel for all of it; only the step counters are increased by a number.
    "adamw fused": Case(lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True), ADAM_STATE, SCALAR),
    # std = sum.sqrt().add_(eps): the root, and the `std` of the parameter before.
    "adagrad": Case(
        lambda p: torch.optim.Adagrad(p, lr=0.1, foreach=False),
        P + COUNT * STEP,
        max(before + own + SCALAR for before, own in pairs(PARAMETERS)),
        early_state=True,
    ),
    # Roots of all sums, and all gradients times a number.
    "adagrad foreach": Case(
        lambda p: torch.optim.Adagrad(p, lr=0.1, foreach=True),
        P + COUNT * STEP,
        2 * P + SCALAR,
        early_state=True,
    ),
}


def train(
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *,
    model_before: bool = False,
    optimizer_before: bool = False,
    micro_batches: int = 1,
    set_to_none: bool = True,
    steps: int = 3,
) -> Callable[[Recording], Outcome]:
    """The job: notes a moment after each statement."""

    def job(record: Recording) -> Outcome:
        done = Outcome()
        at = done.moments
        model = make_model() if model_before else None
        optimizer = make(model.parameters()) if model is not None and optimizer_before else None
        with record():
            at["start"] = now()
            if model is None:
                model = make_model()
            at["init"] = now()
            if optimizer is None:
                optimizer = make(model.parameters())
            at["optimizer"] = now()
            batches = [
                (torch.randn(BATCH, IN), torch.randn(BATCH, OUT)) for _ in range(micro_batches)
            ]
            at["data"] = now()
            for step in range(steps):
                for micro, (x, target) in enumerate(batches):
                    loss = nn.functional.mse_loss(model(x), target)
                    at[f"forward {step}.{micro}"] = now()
                    loss.backward()
                    at[f"backward {step}.{micro}"] = now()
                    done.losses.append(loss.item())
                    del loss
                at[f"before step {step}"] = now()
                optimizer.step()
                at[f"step {step}"] = now()
                optimizer.zero_grad(set_to_none=set_to_none)
                at[f"zero {step}"] = now()
        done.values += [parameter.detach() for parameter in model.parameters()]
        done.models.append(model)
        return done

    return job


def expected(
    *,
    weight: int = P,
    gradient: int = 0,
    state: int = 0,
    activation: int = 0,
    batches: int = 1,
) -> dict[Category, int]:
    parts = {
        Category.WEIGHT: weight,
        Category.GRADIENT: gradient,
        Category.OPTIMIZER_STATE: state,
        Category.ACTIVATION: activation,
        Category.INPUT: batches * (X + TARGET),
    }
    return {category: size for category, size in parts.items() if size}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def most_in_step(recorded: Recorded, step: int, category: Category | None = None) -> int:
    """Most bytes at one time within an optimizer step."""
    moments = recorded.outcome.moments
    return most_between(
        recorded.rank, category, moments[f"before step {step}"], moments[f"step {step}"]
    )


@pytest.mark.parametrize(
    ("source", "before", "stacks"),
    [("hook", False, True), ("hook", True, False), ("profiler", False, False)],
    ids=["made inside, stacks", "made before, no stacks", "torch's profiler"],
)
@pytest.mark.parametrize("name", CASES)
def test_every_category_at_every_moment(
    name: str,
    source: str,
    before: bool,
    stacks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEMLENS_CPU_SOURCE", source)
    case = CASES[name]
    early = case.state if case.early_state else 0
    job = train(case.make, model_before=before, optimizer_before=before)

    recorded = run_both(job, tmp_path, stacks=stacks)

    at = recorded.at
    assert at("start") == (expected(state=early, batches=0) if before else {})
    assert at("init") == expected(state=early if before else 0, batches=0)
    assert at("optimizer") == expected(state=early, batches=0)
    assert at("data") == expected(state=early)
    for step in range(3):
        state = case.state if step else early
        in_forward = SAVED + Y + LOSS
        assert at(f"forward {step}.0") == expected(state=state, activation=in_forward)
        # What was saved for backward is freed; the loss is still in a variable.
        assert at(f"backward {step}.0") == expected(state=state, gradient=P, activation=LOSS)
        assert at(f"before step {step}") == expected(state=state, gradient=P)
        assert at(f"step {step}") == expected(state=case.state, gradient=P)
        assert at(f"zero {step}") == expected(state=case.state)

        temporary = case.temporary
        if step == 0 and case.first_temporary is not None:
            temporary = case.first_temporary
        assert most_in_step(recorded, step, Category.OPTIMIZER_TEMPORARY) == temporary
        # State is made first, so at its peak the step holds all of it and its temporaries.
        everything = P + case.state + P + X + TARGET + temporary
        assert most_in_step(recorded, step) == everything


def test_the_peak_is_inside_the_optimizer_step(tmp_path: Path) -> None:
    """Foreach AdamW's roots of the second moments are as large as the model, and no state."""
    job = train(CASES["adamw foreach"].make, steps=2)

    recorded = run_both(job, tmp_path)

    peak = recorded.rank.peak()
    assert peak.phase is Phase.OPTIMIZER
    assert peak.step == 0
    assert {name: size for name, size in peak.categories.items() if size} == {
        Category.WEIGHT: P,
        Category.OPTIMIZER_STATE: ADAM_STATE,
        Category.GRADIENT: P,
        Category.OPTIMIZER_TEMPORARY: P + SCALAR,
        Category.INPUT: X + TARGET,
    }
    assert peak.allocated_bytes == P + ADAM_STATE + P + P + SCALAR + X + TARGET
    first, second = recorded.rank.steps()
    assert first.categories == second.categories == peak.categories
    # A step ends with its optimizer's: the gradients are still there.
    assert first.end_bytes == second.end_bytes == P + ADAM_STATE + P + X + TARGET


@pytest.mark.parametrize("name", ["sgd", "sgd momentum", "adamw", "adamw foreach", "adagrad"])
def test_gradient_accumulation(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    early = case.state if case.early_state else 0

    recorded = run_both(train(case.make, micro_batches=2), tmp_path)

    at = recorded.at
    assert at("data") == expected(state=early, batches=2)
    for step in range(3):
        state = case.state if step else early
        in_forward = SAVED + Y + LOSS
        assert at(f"forward {step}.0") == expected(state=state, activation=in_forward, batches=2)
        assert at(f"backward {step}.0") == expected(
            state=state, gradient=P, activation=LOSS, batches=2
        )
        # The second micro-batch adds to the gradients of the first.
        assert at(f"forward {step}.1") == expected(
            state=state, gradient=P, activation=in_forward, batches=2
        )
        assert at(f"backward {step}.1") == expected(
            state=state, gradient=P, activation=LOSS, batches=2
        )
        assert at(f"step {step}") == expected(state=case.state, gradient=P, batches=2)
        assert at(f"zero {step}") == expected(state=case.state, batches=2)
    # Four backwards, three steps.
    assert [step.step for step in recorded.rank.steps()] == [0, 1, 2]


@pytest.mark.parametrize("name", ["sgd", "sgd momentum", "adamw", "adamw foreach", "adagrad"])
def test_gradients_that_are_zeroed_and_kept(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    early = case.state if case.early_state else 0

    recorded = run_both(train(case.make, set_to_none=False), tmp_path)

    at = recorded.at
    assert at("forward 0.0") == expected(state=early, activation=SAVED + Y + LOSS)
    assert at("zero 0") == expected(state=case.state, gradient=P)
    for step in (1, 2):
        assert at(f"forward {step}.0") == expected(
            state=case.state, gradient=P, activation=SAVED + Y + LOSS
        )
        assert at(f"backward {step}.0") == expected(state=case.state, gradient=P, activation=LOSS)
        assert at(f"step {step}") == expected(state=case.state, gradient=P)
        assert at(f"zero {step}") == expected(state=case.state, gradient=P)


class Tied(nn.Module):
    """Two layers that share one weight, as an embedding and a language model's head do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x))
        return result


SHARED = FLOAT * HIDDEN * HIDDEN
TIED = [SHARED, FLOAT * HIDDEN]
"""Bytes of the parameters, each counted once."""
WIDE = FLOAT * BATCH * HIDDEN
"""Bytes of x, of the hidden activation, of y and of the target: all are this wide."""


@pytest.mark.parametrize("before", [False, True], ids=["inside", "before"])
@pytest.mark.parametrize(
    ("make", "states", "temporary"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, SCALAR),
        (
            lambda p: torch.optim.AdamW(p, foreach=False),
            2,
            max(before + 2 * own + SCALAR for before, own in pairs(TIED)),
        ),
        (lambda p: torch.optim.AdamW(p, foreach=True), 2, sum(TIED) + SCALAR),
        (
            lambda p: torch.optim.Adagrad(p, foreach=False),
            1,
            max(before + own + SCALAR for before, own in pairs(TIED)),
        ),
    ],
    ids=["sgd", "sgd momentum", "adamw", "adamw foreach", "adagrad"],
)
def test_tied_weights_count_once(
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    states: int,
    temporary: int,
    before: bool,
    tmp_path: Path,
) -> None:
    def job(record: Recording) -> Outcome:
        done = Outcome()
        at = done.moments
        model = Tied() if before else None
        with record():
            model = model or Tied()
            optimizer = make(model.parameters())
            x, target = torch.randn(BATCH, HIDDEN), torch.randn(BATCH, HIDDEN)
            for step in range(2):
                loss = nn.functional.mse_loss(model(x), target)
                at[f"forward {step}"] = now()
                loss.backward()
                done.losses.append(loss.item())
                del loss
                at[f"before step {step}"] = now()
                optimizer.step()
                at[f"step {step}"] = now()
                optimizer.zero_grad()
                at[f"zero {step}"] = now()
        done.values = [parameter.detach() for parameter in model.parameters()]
        done.models = [model]
        return done

    recorded = run_both(job, tmp_path)

    size = sum(TIED)
    adam_or_adagrad = temporary > SCALAR
    state = states * size + (len(TIED) * STEP if adam_or_adagrad else 0)
    common = {Category.WEIGHT: size, Category.INPUT: 2 * WIDE}
    with_state = common | ({Category.OPTIMIZER_STATE: state} if state else {})
    # The hidden activation is the second layer's input; mse_loss keeps y and its own result.
    assert recorded.at("forward 1") == with_state | {Category.ACTIVATION: 3 * WIDE}
    for step in range(2):
        assert recorded.at(f"step {step}") == with_state | {Category.GRADIENT: size}
        assert recorded.at(f"zero {step}") == with_state
    assert most_in_step(recorded, 1, Category.OPTIMIZER_TEMPORARY) == temporary
    weights = [
        block
        for block in recorded.rank.allocations_at(recorded.outcome.moments["zero 1"], None)
        if block.category is Category.WEIGHT
    ]
    assert sorted((block.size_bytes, block.name) for block in weights) == [
        (FLOAT * HIDDEN, "second.bias"),
        (SHARED, "first.weight"),
    ]
