"""What the layout says of each rank is what FSDP's own tensors are, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
from tests.sharding.launching import found_by_ranks
from tests.sharding.models import Odd, is_frozen

from memlens.sharding.fsdp import Fsdp, fsdp_layout
from memlens.sharding.fsdp_flat import FlatFsdp, flat_fsdp_layout
from memlens.sharding.layout import Held, Parameter, RankLayout, total_bytes

pytestmark = pytest.mark.slow

UNITS = ("table", "first", "middle")
FLAT_UNITS = (*UNITS, "last")


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest) -> dict[int, Any]:
    return found_by_ranks("fsdp_layout_job.py", request.param)


@pytest.fixture(scope="module")
def values() -> dict[str, list[float]]:
    return {name: each.detach().reshape(-1).tolist() for name, each in Odd().named_parameters()}


def units(inner: tuple[str, ...]) -> list[list[Parameter]]:
    """The root's own parameters, and those of each inner module."""
    parameters = [
        Parameter(name, tuple(each.shape), trainable=not is_frozen(name))
        for name, each in Odd().named_parameters()
    ]
    groups = [[each for each in parameters if each.name.split(".")[0] not in inner]]
    return groups + [[e for e in parameters if e.name.split(".")[0] == name] for name in inner]


@pytest.mark.parametrize(("name", "gather"), [("fsdp2 fp32", 4), ("fsdp2 bf16", 2)])
def test_fsdp2(
    ranks: dict[int, Any], values: dict[str, list[float]], name: str, gather: int
) -> None:
    for rank, answers in ranks.items():
        found = answers[name]
        layout, groups = fsdp_layout(Fsdp(len(ranks), gather_bytes=gather), units(UNITS), rank)
        check_sizes(layout, found)
        gathered = [total_bytes(each.gathered) for each in groups[1:]]
        assert gathered == [found["gathered"][unit] for unit in UNITS]
        for held in layout.optimizer_tensors:
            assert_covered(held, found["contents"][held.name], values)


@pytest.mark.parametrize("original", [False, True])
def test_fsdp1(ranks: dict[int, Any], values: dict[str, list[float]], original: bool) -> None:
    for rank, answers in ranks.items():
        found = answers["fsdp1 original" if original else "fsdp1"]
        layout, _ = flat_fsdp_layout(
            FlatFsdp(len(ranks), use_orig_params=original), units(FLAT_UNITS), rank
        )
        check_sizes(layout, found)
        for held, content in zip(layout.weights, found["contents"], strict=True):
            assert held.elements == len(content)
            assert_covered(held, content, values)


def check_sizes(layout: RankLayout, found: dict[str, Any]) -> None:
    assert {
        "weights": layout.weight_bytes,
        "gradients": layout.gradient_bytes,
        "state": layout.state_bytes(),
    } == {key: found[key] for key in ("weights", "gradients", "state")}


def assert_covered(held: Held, content: list[float], values: dict[str, list[float]]) -> None:
    """Each piece is those elements of its parameter."""
    for piece in held.pieces:
        end = piece.parameter_start + piece.count
        expected = values[piece.parameter][piece.parameter_start : end]
        assert content[piece.start : piece.start + piece.count] == expected
