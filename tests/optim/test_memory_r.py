"""What the optimizers allocate in `step()`, seen by memlens itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.optim.training import PAIRS, Make
from tests.support.training import Outcome, Recorded, Recording, most_between, now, run_both
from torch import nn

from memlens.events import Category
from memlens.optim import AdamWR, AdanR, LionR

WIDTH, LAYERS, BATCH, STEPS = 32, 4, 6, 4
FLOAT = 4
BIAS = FLOAT * WIDTH
MODEL = LAYERS * (FLOAT * WIDTH * WIDTH + BIAS)
"""Bytes of all parameters."""
NUMBERS = 16
"""torch makes tensors of Python numbers, of 8 bytes at most, and here and there copies one."""


def lion_scratch_bytes() -> int:
    return FLOAT * math.ceil(MODEL / FLOAT / 256)


def record(folder: Path, make: Make, set_to_none: bool = True, **options: Any) -> Recorded:
    def job(recording: Recording) -> Outcome:
        done = Outcome()
        with recording():
            model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
            optimizer = make(model.parameters(), lr=1e-3, weight_decay=0.1, **options)
            x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
            for step in range(STEPS):
                optimizer.zero_grad(set_to_none=set_to_none)
                nn.functional.mse_loss(model(x), target).backward()
                done.moments[f"before {step}"] = now()
                optimizer.step()
                done.moments[f"after {step}"] = now()
        done.values = [value.detach() for value in model.parameters()]
        done.models = [model]
        return done

    return run_both(job, folder)


def temporary_bytes(recorded: Recorded, step: int) -> int:
    moments = recorded.outcome.moments
    return most_between(
        recorded.rank,
        Category.OPTIMIZER_TEMPORARY,
        moments[f"before {step}"],
        moments[f"after {step}"],
    )


def rise_bytes(recorded: Recorded, step: int) -> int:
    """Most that was allocated within a step, of whatever category, above what there was before."""
    before, after = (recorded.outcome.moments[f"{when} {step}"] for when in ("before", "after"))
    begin = sum(recorded.at(f"before {step}").values())
    return most_between(recorded.rank, None, before, after) - begin


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (AdamWR, {}),
        (AdamWR, {"foreach": True}),
        (AdamWR, {"maximize": True}),
        (AdamWR, {"maximize": True, "foreach": True}),
        (AdamWR, {"amsgrad": True}),
        (AdamWR, {"amsgrad": True, "foreach": True}),
        (AdanR, {}),
        (AdanR, {"foreach": False}),
        (AdanR, {"maximize": True}),
        (AdanR, {"maximize": True, "foreach": False}),
    ],
)
def test_no_tensor_is_allocated(tmp_path: Path, make: Make, options: dict[str, Any]) -> None:
    recorded = record(tmp_path, make, **options)
    for step in range(STEPS):
        assert temporary_bytes(recorded, step) <= NUMBERS
    for step in range(1, STEPS):  # the first makes the state
        assert rise_bytes(recorded, step) <= NUMBERS


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"foreach": False}], ids=str)
def test_lion_r_needs_scratch_memory_for_a_256th_part(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    recorded = record(tmp_path, LionR, **options)
    scratch = lion_scratch_bytes()
    assert scratch < BIAS
    for step in range(STEPS):
        assert scratch <= temporary_bytes(recorded, step) <= scratch + NUMBERS
    for step in range(1, STEPS):
        assert scratch <= rise_bytes(recorded, step) <= scratch + NUMBERS


@pytest.mark.parametrize(("original", "ours"), PAIRS.values(), ids=PAIRS.keys())
def test_the_originals_need_one_more_copy_of_the_model(
    tmp_path: Path, original: Make, ours: Make
) -> None:
    def measure(name: str, make: Make) -> tuple[list[int], list[dict[Category, int]]]:
        recorded = record(tmp_path / name, make, foreach=True)
        return (
            [rise_bytes(recorded, step) for step in range(1, STEPS)],
            [
                recorded.at(f"{when} {step}")
                for step in range(STEPS)
                for when in ("before", "after")
            ],
        )

    their_rises, theirs = measure("original", original)
    our_rises, mine = measure("ours", ours)
    assert mine == theirs, "between the steps all is the same"
    for their_rise, our_rise in zip(their_rises, our_rises, strict=True):
        assert their_rise >= MODEL
        assert our_rise <= MODEL / 256 + FLOAT + NUMBERS


@pytest.mark.parametrize("make", [AdamWR, LionR])
def test_gradients_that_are_kept_are_looked_at(tmp_path: Path, make: Make) -> None:
    """One element of each, gathered, and the largest of them."""
    recorded = record(tmp_path, make, set_to_none=False)
    most = FLOAT * (2 * LAYERS + 1)
    if make is LionR:
        most = max(most, lion_scratch_bytes())
    for step in range(1, STEPS):
        assert most <= temporary_bytes(recorded, step) <= most + NUMBERS


@pytest.mark.parametrize("make", [AdamWR, LionR])
def test_what_becomes_of_the_gradient_is_booked_as_gradient(tmp_path: Path, make: Make) -> None:
    recorded = record(tmp_path, make)
    for step in range(STEPS):
        assert recorded.at(f"after {step}")[Category.GRADIENT] == MODEL
