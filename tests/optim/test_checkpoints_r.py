"""State dicts can go from the original to ours and back, in the middle of a training."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from tests.optim.training import PAIRS, Make, groups, identical, loss_of, transformer, values
from torch import Tensor, nn
from torch.optim import Optimizer

from memlens.errors import UsageError
from memlens.optim import AdamWR, AdanR, LionR

all_pairs = pytest.mark.parametrize(("original", "ours"), PAIRS.values(), ids=PAIRS.keys())
DTYPES = [torch.float32, torch.bfloat16]


class Run:
    """A training that can change its optimizer."""

    def __init__(self, make: Make, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = transformer().to(dtype)
        self.random = torch.Generator().manual_seed(1)
        self.optimizer: Optimizer = make(groups(self.model), lr=1e-3, **options)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            loss_of(self.model, self.random).backward()
            self.optimizer.step()

    def resume(self, make: Make, **options: Any) -> None:
        """Go on with another optimizer, by way of a file."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        # Constructed with other hyperparameters: those of the checkpoint must win.
        self.optimizer = make(groups(self.model), lr=7.0, **options)
        self.optimizer.load_state_dict(torch.load(file, weights_only=True))


@all_pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("foreach", [True, False])
def test_there_and_back(original: Make, ours: Make, dtype: torch.dtype, foreach: bool) -> None:
    plain = Run(original, dtype, foreach=foreach)
    plain.steps(15)
    changing = Run(original, dtype, foreach=foreach)
    changing.steps(5)
    changing.resume(ours)
    changing.steps(5)
    changing.resume(original)
    changing.steps(5)
    assert identical(values(changing.model), values(plain.model))


@all_pairs
def test_the_state_has_the_same_layout(original: Make, ours: Make) -> None:
    def layout(make: Make) -> tuple[Any, Any]:
        run = Run(make)
        run.steps(2)
        saved = run.optimizer.state_dict()
        state = {
            index: {
                key: (value.dtype, value.shape, value.device)
                if isinstance(value, Tensor)
                else value
                for key, value in entry.items()
            }
            for index, entry in saved["state"].items()
        }
        return state, [dict(group) for group in saved["param_groups"]]

    (state, its_groups), (our_state, our_groups) = layout(original), layout(ours)
    assert our_state == state
    for group, our_group in zip(its_groups, our_groups, strict=True):
        our_group.pop("maximize")  # not in the groups of pytorch_optimizer
        group.pop("maximize", None)
        assert our_group == group


@pytest.mark.parametrize(
    "options",
    [{"fused": True}, {"foreach": True}, {"capturable": True}, {"differentiable": True}],
    ids=str,
)
def test_what_a_checkpoint_of_adamw_was_trained_with_does_not_matter(
    options: dict[str, bool],
) -> None:
    run = Run(torch.optim.AdamW, amsgrad=True)
    run.steps(3)
    saved = run.optimizer.state_dict()
    for group in saved["param_groups"]:
        group.update(options)

    reference = Run(torch.optim.AdamW, amsgrad=True)
    reference.steps(3)
    reference.optimizer.param_groups[0]["foreach"] = options.get("foreach")
    reference.steps(3)

    ours = AdamWR(run.optimizer.param_groups)
    ours.load_state_dict(saved)
    run.optimizer = ours
    run.steps(3)
    assert identical(values(run.model), values(reference.model))
    for group in ours.param_groups:
        assert not (group["fused"] or group["capturable"] or group["differentiable"])
    for state in ours.state.values():
        assert state["step"].device.type == "cpu"
    run.resume(torch.optim.AdamW)
    run.steps(1)


def test_step_counts_that_are_numbers() -> None:
    """As old versions of AdamW saved them."""
    run, reference = Run(torch.optim.AdamW), Run(torch.optim.AdamW)
    run.steps(2)
    reference.steps(4)
    saved = run.optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    run.optimizer = AdamWR(run.optimizer.param_groups)
    run.optimizer.load_state_dict(saved)
    run.steps(2)
    assert identical(values(run.model), values(reference.model))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (AdanR, {"use_gc": True}),
        (AdanR, {"adanorm": True}),
        (LionR, {"use_gc": True}),
        (LionR, {"cautious": True}),
    ],
)
def test_options_of_the_original_that_change_the_result(
    make: Make, options: dict[str, bool]
) -> None:
    original = next(first for first, second in PAIRS.values() if second is make)
    run = Run(original, torch.float32, **options)
    run.steps(1)
    ours = make(groups(run.model))
    with pytest.raises(UsageError, match=next(iter(options))):
        ours.load_state_dict(run.optimizer.state_dict())
    assert not ours.state


@pytest.mark.parametrize("make", [ours for _, ours in PAIRS.values()], ids=PAIRS.keys())
def test_copies_and_pickles_go_on_alike(make: Make) -> None:
    run = Run(make, maximize=True)
    run.steps(2)
    copies = [copy.deepcopy(run), pickle.loads(pickle.dumps((run.model, run.optimizer)))]
    run.steps(2)
    copies[0].steps(2)
    assert identical(values(copies[0].model), values(run.model))
    assert copies[1][1].param_groups[0]["maximize"] is True


@pytest.mark.parametrize("make", [ours for _, ours in PAIRS.values()], ids=PAIRS.keys())
def test_schedules_and_groups_added_later(make: Make) -> None:
    original = next(first for first, second in PAIRS.values() if second is make)

    def run(make: Make) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        optimizer = make(model[0].parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        for step in range(6):
            optimizer.zero_grad()
            model[1](model[0](torch.ones(2, 3))).square().sum().backward()
            optimizer.step()
            schedule.step()
            if step == 2:
                optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.01})
                optimizer.param_groups[1].update(
                    {k: v for k, v in optimizer.param_groups[0].items() if k.endswith("_lr")}
                )
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
        return values(model)

    assert identical(run(make), run(original))
