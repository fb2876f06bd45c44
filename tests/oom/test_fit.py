"""Why a request failed, and what would have let it through: every figure by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memlens.analysis.fit import Obstacle, fit_of
from memlens.analysis.remedies import Circumstances, Remedy, remedies_for, two_together
from memlens.answers import ModuleUsage, OutOfMemory
from memlens.events import Category, Phase

GIB = 2**30
EVENT = OutOfMemory(
    time_ns=1,
    reason="own",
    peer_rank=None,
    device="cuda:0",
    device_index=0,
    step=3,
    requested_bytes=2 * GIB,
    device_total_bytes=80 * GIB,
    device_free_bytes=GIB,
    limit_bytes=None,
    allocated_bytes=70 * GIB,
    reserved_bytes=75 * GIB,
    private_pool_bytes=0,
    pending_bytes=0,
    free_pieces=((GIB, "large"), (GIB, "large")),
    free_pieces_bytes=5 * GIB,
    largest_free_bytes=GIB,
    allocator_settings={},
    stack=(),
)


@pytest.mark.parametrize(
    ("changes", "obstacle", "missing", "short"),
    [
        ({}, Obstacle.FRAGMENTATION, GIB, 0),
        ({"free_pieces_bytes": GIB // 4}, Obstacle.SIZE, GIB, GIB * 3 // 4),
        ({"free_pieces_bytes": 0, "pending_bytes": GIB}, Obstacle.STREAMS, GIB, GIB),
        ({"free_pieces_bytes": 0, "pending_bytes": GIB - 1}, Obstacle.SIZE, GIB, GIB),
        (
            {"device_free_bytes": 10 * GIB, "limit_bytes": 76 * GIB, "free_pieces_bytes": 0},
            Obstacle.LIMIT,
            GIB,
            GIB,
        ),
    ],
)
def test_the_obstacle(
    changes: dict[str, Any], obstacle: Obstacle, missing: int, short: int
) -> None:
    fit = fit_of(replace(EVENT, **changes))
    assert fit is not None
    assert (fit.obstacle, fit.missing_bytes, fit.short_bytes) == (obstacle, missing, short)


def test_what_others_hold() -> None:
    fit = fit_of(EVENT)
    assert fit is not None
    assert fit.outside_bytes == 4 * GIB  # of 80, 1 is free and 75 are reserved


def test_another_ranks_request_is_not_explained() -> None:
    assert fit_of(replace(EVENT, requested_bytes=None)) is None


def case(event: OutOfMemory = EVENT, phase: Phase = Phase.BACKWARD, **held: int) -> Circumstances:
    fit = fit_of(event)
    assert fit is not None
    categories = dict.fromkeys(Category, 0) | {Category(key): size for key, size in held.items()}
    layers = [
        ModuleUsage(f"model.layers.{number}.mlp", "MLP", 2 * GIB, {Category.ACTIVATION: 2 * GIB})
        for number in range(4)
    ]
    largest = {key: size // 8 for key, size in categories.items()}
    return Circumstances(event, fit, phase, categories, layers, largest, world_size=4)


def frees(found: tuple[Remedy, ...]) -> dict[str, int]:
    return {remedy.change.split(" ")[0]: remedy.frees_bytes for remedy in found}


def test_figures_come_from_what_was_alive() -> None:
    found = remedies_for(
        case(
            optimizer_temporary=3 * GIB,
            gradient=8 * GIB,
            activation=10 * GIB,
            input=2 * GIB,
            optimizer_state=16 * GIB,
        )
    )
    assert frees(found) == {
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True": 5 * GIB,
        "optimizer": 3 * GIB,
        "update": 7 * GIB,
        "see": 2 * GIB,
        "half": 6 * GIB,
        "activation": 6 * GIB,
        "ZeRO": 12 * GIB,
        "an": int(0.49 * 16 * GIB),
    }
    assert all(remedy.suffices for remedy in found)


def test_what_suffices_comes_first() -> None:
    event = replace(EVENT, requested_bytes=8 * GIB)
    found = remedies_for(case(event, optimizer_temporary=3 * GIB, optimizer_state=16 * GIB))
    assert [remedy.suffices for remedy in found] == sorted(
        (remedy.suffices for remedy in found), reverse=True
    )
    assert found[0].change.startswith("ZeRO")


def test_two_that_suffice_together() -> None:
    event = replace(
        EVENT, requested_bytes=9 * GIB, allocator_settings={"expandable_segments": True}
    )
    situation = case(event, optimizer_temporary=6 * GIB, input=5 * GIB)
    together = two_together(situation, remedies_for(situation))
    assert together is not None
    assert [remedy.frees_bytes for remedy in together] == [6 * GIB, 2 * GIB]


def test_gradients_through_the_forward() -> None:
    found = remedies_for(case(phase=Phase.FORWARD, gradient=8 * GIB))
    assert frees(found)["optimizer.zero_grad(set_to_none=True)"] == 8 * GIB


def test_small_change_is_not_proposed() -> None:
    found = remedies_for(case(optimizer_temporary=2**20))
    assert "optimizer" not in frees(found)
