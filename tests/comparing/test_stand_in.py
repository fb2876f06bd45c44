"""What a job gets when it constructs an optimizer, and what the replacement is made of."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_optimizer  # noqa: F401  before any test: its import adds a finder of modules
import torch
from torch import nn

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.variant import parse_variant
from memlens.errors import UsageError
from memlens.optim.in_backward import StepInBackward
from memlens.variants.ask_sharding import ask_for
from memlens.variants.request import read_construction
from memlens.variants.stand_in import StandIn
from memlens.variants.witness import Witness, read_witnesses


@contextmanager
def standing_in(variant: str, folder: Path) -> Iterator[Witness]:
    with ExitStack() as undo:
        witness = Witness(folder)
        witness.install(undo)
        StandIn(parse_variant(variant), witness).install(undo)
        yield witness
        witness.write()


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


class JobsOwn(torch.optim.AdamW):
    """A job may derive from an optimizer of torch."""


class Hybrid(torch.optim.Optimizer):
    """A job's own, made from something else than parameters."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        super().__init__(network.parameters(), {"lr": rate})


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: around one that is there."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adam, JobsOwn])
def test_any_class_of_torch_gives_way(kind: Any, tmp_path: Path) -> None:
    with standing_in("sgd-momentum-loop", tmp_path) as witness:
        optimizer = kind(model().parameters(), lr=1e-2, weight_decay=0.5)
    assert type(optimizer) is torch.optim.SGD
    assert witness.replaced == [kind.__name__]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # ten times AdamW's
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["foreach"] is False
    # And afterwards all is as it was.
    after = kind(model().parameters(), lr=1e-2)
    assert type(after) is kind
    after.zero_grad()


def test_groups_keep_what_the_replacement_understands(tmp_path: Path) -> None:
    network = model()
    groups = [
        {"params": [network[0].weight, network[1].weight], "weight_decay": 0.1, "amsgrad": True},
        {"params": (each for each in (network[0].bias, network[1].bias)), "lr": 5e-4},
    ]
    with standing_in("lion", tmp_path):
        optimizer = torch.optim.AdamW(groups, 1e-3, (0.8, 0.9))
    first, second = optimizer.param_groups
    assert type(optimizer).__name__ == "Lion"
    assert (first["lr"], second["lr"]) == (pytest.approx(2e-4), pytest.approx(1e-4))
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert first["betas"] == second["betas"] == (0.9, 0.99)  # Lion's own
    assert "amsgrad" not in first
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_the_same_class_is_constructed_once(tmp_path: Path) -> None:
    """Python calls the constructor of what `__new__` gives back; that must change nothing."""
    with standing_in("adamw:lr=0.5", tmp_path):
        optimizer = torch.optim.AdamW(model().parameters(), lr=1e-3, amsgrad=True)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["amsgrad"] is True


def test_the_learning_rate_may_be_scaled(tmp_path: Path) -> None:
    with standing_in("adamw:lr_scale=3", tmp_path):
        optimizer = torch.optim.SGD(model().parameters(), lr=1e-3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-3)


def test_wrappers_and_copies_are_left_alone(tmp_path: Path) -> None:
    with standing_in("sgd", tmp_path) as witness:
        inner: torch.optim.Optimizer = torch.optim.AdamW(model().parameters())
        assert type(Wrapper(inner)) is Wrapper
        assert type(copy.deepcopy(inner)) is torch.optim.SGD
        assert type(pickle.loads(pickle.dumps(inner))) is torch.optim.SGD
    assert witness.replaced == ["AdamW"]


class Flat:
    """As DeepSpeed's around an optimizer: no `torch.optim.Optimizer`, but with its groups."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups = optimizer.param_groups


def test_wrappers_of_wrappers_are_left_alone(tmp_path: Path) -> None:
    with standing_in("sgd", tmp_path) as witness:
        inner = torch.optim.AdamW(model().parameters())
        outer = Wrapper(Flat(inner))  # type: ignore[arg-type]
    assert type(outer) is Wrapper
    assert witness.replaced == ["AdamW"]


def test_one_that_is_made_again_is_not_scaled_again(tmp_path: Path) -> None:
    """DeepSpeed makes Adagrad anew, for its partitions."""
    with standing_in("adagrad", tmp_path) as witness:
        first = torch.optim.AdamW(model().parameters(), lr=1e-3)
        second = torch.optim.Adagrad(model().parameters(), **first.defaults)
        third = torch.optim.Adagrad(model().parameters(), lr=1e-3)
    assert witness.replaced == ["AdamW", "Adagrad"]
    rates = [each.param_groups[0]["lr"] for each in (first, second, third)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2])


class OnHost(torch.optim.Optimizer):
    """As DeepSpeed's for the CPU, which call the parameters something else."""

    def __init__(self, model_params: Any, lr: float = 1e-3, adamw_mode: bool = True) -> None:
        super().__init__(model_params, {"lr": lr})


def test_parameters_by_another_name(tmp_path: Path) -> None:
    network = model()
    with standing_in("sgd", tmp_path):
        made: Any = OnHost(network.parameters(), lr=0.5)
    assert type(made) is torch.optim.SGD
    assert made.param_groups[0]["params"] == list(network.parameters())


@pytest.mark.parametrize(
    ("library", "mode", "words"),
    [
        ("", "zero2", "deepspeed.initialize("),
        ("accelerate", "zero2", "Accelerator(deepspeed_plugin="),
        ("transformers.trainer", "zero0", "TrainingArguments(deepspeed="),
        ("", "fsdp", "fully_shard"),
        ("accelerate", "fsdp", "Accelerator(fsdp_plugin="),
        ("transformers.trainer", "fsdp", "TrainingArguments(fsdp="),
    ],
)
def test_a_job_that_is_not_sharded_is_refused_at_its_first_step(
    library: str, mode: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("transformers.trainer", "accelerate"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if library:
        monkeypatch.setitem(sys.modules, library, ModuleType(library))
    network = model()
    with standing_in("sgd", tmp_path) as witness, ExitStack() as undo:
        ask_for(ShardingMode(mode), parse_variant("sgd"), witness, undo)
        optimizer = torch.optim.AdamW(network.parameters())
        network(torch.randn(2, 8)).sum().backward()
        with pytest.raises(UsageError, match=re.escape(words)):
            optimizer.step()
    assert read_witnesses(tmp_path)[0]["is_unsharded"]


def test_what_cannot_be_replaced_says_so(tmp_path: Path) -> None:
    with standing_in("sgd", tmp_path):
        with pytest.raises(UsageError, match=r"cannot replace Hybrid: .*`params`"):
            Hybrid(model(), 0.1)
        with pytest.raises(UsageError, match="empty parameter list"):
            torch.optim.SGD([], lr=0.1)
        with pytest.raises(UsageError, match="does not fit its signature"):
            torch.optim.SGD(model().parameters(), learning_rate=0.1)  # type: ignore[call-arg]


def test_as_is_replaces_nothing_and_takes_notes(tmp_path: Path) -> None:
    network = model()
    with standing_in("as-is", tmp_path):
        optimizer = torch.optim.RMSprop(network.parameters())
        assert type(optimizer) is torch.optim.RMSprop
        for _ in range(3):
            loss = network(torch.ones(2, 8)).square().mean()
            loss.backward()
            optimizer.step()
    notes = read_witnesses(tmp_path)
    assert len(notes) == 1
    assert notes[0]["replaced"] == ["RMSprop"]
    assert len(notes[0]["losses"]) == 3
    assert notes[0]["losses"][-1] == loss.item()


@pytest.mark.parametrize(
    "clip",
    [
        lambda params: nn.utils.clip_grad_norm_(params, 1.0),
        lambda params: nn.utils.clip_grad.clip_grad_norm_(params, 1.0),
        lambda params: nn.utils.clip_grad_value_(params, 1.0),
    ],
)
def test_clipping_is_refused_where_gradients_are_not_retained(
    clip: Callable[[Any], Any], tmp_path: Path
) -> None:
    network = model()
    before = nn.utils.clip_grad_norm_
    with standing_in("adamw+no-retain-grad", tmp_path):
        optimizer = torch.optim.AdamW(network.parameters())
        assert isinstance(optimizer, StepInBackward)
        network(torch.ones(2, 8)).sum().backward()
        assert all(each.grad is None for each in network.parameters())
        with pytest.raises(UsageError, match="clips its gradients"):
            clip(network.parameters())
        optimizer.remove()
    assert nn.utils.clip_grad_norm_ is before
    with standing_in("adamw", tmp_path):
        network(torch.ones(2, 8)).sum().backward()
        clip(network.parameters())


def test_precision_of_a_row_casts_the_model(tmp_path: Path) -> None:
    network = model()
    parameters = list(network.parameters())
    with standing_in("adamw-bf16", tmp_path):
        optimizer = torch.optim.AdamW(network.parameters())
        result = network(torch.ones(2, 8))
        result.sum().backward()
        optimizer.step()
    assert result.dtype == torch.float32
    assert {each.dtype for each in network.parameters()} == {torch.bfloat16}
    assert all(
        ours is theirs for ours, theirs in zip(network.parameters(), parameters, strict=True)
    )
    state = optimizer.state[parameters[0]]
    assert state["exp_avg"].dtype == torch.bfloat16


def test_constructions_are_read_in_all_their_forms() -> None:
    network = model()
    named = read_construction(torch.optim.AdamW, (network.named_parameters(),), {"eps": 1e-6})
    assert named.groups[0]["params"] == list(network.parameters())
    assert named.hyper["eps"] == 1e-6
    assert named.hyper["lr"] == 1e-3
    one = read_construction(torch.optim.SGD, ([{"params": network[0].weight}],), {"lr": 2.0})
    assert one.groups == [{"params": [network[0].weight]}]
    assert one.hyper == {"lr": 2.0}
    with pytest.raises(UsageError, match="not one tensor"):
        read_construction(torch.optim.SGD, (network[0].weight,), {})
