"""Under ZeRO, what memlens records of each rank is what theory says, to the byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from tests.zero.configurations import Model, groups_of, settings
from tests.zero.launching import Trained, train

from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, RankLayout, total_bytes
from memlens.sharding.zero import Zero, zero_layout

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed")

MATRIX = [f"stage{stage}-{dtype}" for stage in range(4) for dtype in ("fp32", "bf16", "fp16")]
MORE = [
    "stage1-bf16-accumulate",
    "stage1-bf16-float32",
    "stage1-bf16-adamwr",
    "stage1-fp16-accumulate",
    "stage1-fp16-float32",
    "stage1-bf16-float32-offload",
    "stage2-fp32-config-roundrobin-overlap",
    "stage2-bf16-float32-accumulate",
    "stage2-bf16-accumulate-offload",
    "stage2-fp16-accumulate-offload",
    "stage2-fp16-float32-accumulate",
    "stage2-bf16-adamw8bit",
    "stage3-bf16-accumulate",
    "stage3-bf16-float32-accumulate",
    "stage3-fp16-accumulate",
    "stage3-fp32-offload",
    "stage3-bf16-accumulate-offloadall",
    "stage2-bf16-late",
    "stage3-fp32-late",
    "stage3-bf16-init",
]
NAMES = {1: MATRIX, 2: MATRIX + MORE, 4: MATRIX}


@pytest.fixture(scope="module", params=NAMES)
def ranks(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="module")
def trained(
    ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Trained]]]:
    found: dict[str, list[Trained]] = {}
    for each in train(ranks, NAMES[ranks], tmp_path_factory.mktemp(f"zero{ranks}")):
        found.setdefault(each.name, []).append(each)
    yield found


def parameters_of(name: str) -> tuple[list[Parameter], list[list[str]]]:
    """The job's parameters, and how they are grouped."""
    model = Model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [Parameter(name, tuple(each.shape)) for each, name in names.items()]
    groups = [[names[each] for each in group["params"]] for group in groups_of(model)]
    if "init" in name.split("-"):  # the job sees vectors only: what is partitioned has no shape
        groups = [list(names.values())]
    return parameters, groups


def layout_of(each: Trained) -> RankLayout:
    parameters, groups = parameters_of(each.name)
    zero = Zero.from_config(settings(each.name), each.ranks)
    return zero_layout(zero, parameters, each.rank, groups)


def test_bytes(trained: dict[str, list[Trained]]) -> None:
    for each in (rank for ranks in trained.values() for rank in ranks):
        layout, capture = layout_of(each), each.capture
        expected = {
            Category.WEIGHT: layout.weight_bytes + total_bytes(layout.persistent),
            Category.MASTER_WEIGHT: layout.master_weight_bytes,
            Category.OPTIMIZER_STATE: layout.state_bytes(),
        }
        if "adamw8bit" in each.name:
            del expected[Category.OPTIMIZER_STATE]  # a test of its own
        after_backward = capture.categories_at(each.time_ns("backward"))
        after_step = capture.categories_at(each.time_ns("step"))
        gradients = {
            "after backward": after_backward[Category.GRADIENT],
            "after step": after_step[Category.GRADIENT],
        }
        where = f"{each.name}, rank {each.rank} of {each.ranks}"
        assert {key: after_backward[key] for key in expected} == expected, where
        assert {key: after_step[key] for key in expected} == expected, where
        assert gradients == {
            "after backward": layout.gradient_bytes,
            "after step": total_bytes(layout.gradients_between_steps),
        }, where


def test_pieces(trained: dict[str, list[Trained]]) -> None:
    """A byte in a flat partition belongs to a parameter, and to certain elements of it."""
    elements = {each.name: each.elements for each in parameters_of("")[0]}

    def label(name: str, start: int, count: int) -> str:
        return name if count == elements[name] else f"{name}[{start}:{start + count}]"

    def expected(storages: Iterable[Held], before: str = "") -> list[list[tuple[str, int, int]]]:
        return sorted(
            [
                (
                    before + label(piece.parameter, piece.parameter_start, piece.count),
                    piece.start * held.element_bytes,
                    piece.count * held.element_bytes,
                )
                for piece in held.pieces
            ]
            for held in storages
            if held.pieces
        )

    for name, ranks in trained.items():
        if name.startswith("stage0") or "adamw8bit" in name:
            continue
        for each in ranks:
            layout, capture = layout_of(each), each.capture
            found: dict[Category, list[list[tuple[str, int, int]]]] = {}
            for block in capture.allocations_at(each.time_ns("step"), top=None):
                parts = [(part.name, part.offset_bytes, part.size_bytes) for part in block.parts]
                if parts:
                    found.setdefault(block.category, []).append(parts)
            where = f"{name}, rank {each.rank} of {each.ranks}"
            masters = expected(layout.master_weights)
            assert sorted(found[Category.MASTER_WEIGHT]) == masters, where
            assert sorted(found[Category.OPTIMIZER_STATE]) == sorted(
                expected(layout.master_weights, "exp_avg of ")
                + expected(layout.master_weights, "exp_avg_sq of ")
            ), where


def test_every_event_is_conserved(trained: dict[str, list[Trained]]) -> None:
    for each in (rank for ranks in trained.values() for rank in ranks):
        timeline = each.capture.timeline()
        total = np.sum(list(timeline.categories.values()), axis=0)
        assert np.array_equal(total, timeline.allocated_bytes), each.run


def test_little_is_unknown_and_communication_has_names(trained: dict[str, list[Trained]]) -> None:
    for each in (rank for ranks in trained.values() for rank in ranks):
        capture = each.capture
        peak = capture.peak()
        assert peak.categories[Category.UNKNOWN] < 0.01 * peak.allocated_bytes, each.run
        rows = [row for row in capture.to_arrow().to_pylist() if row["category"] == "communication"]
        assert all(row["name"] for row in rows), each.run
        # A world of one has nobody to send its weights and, without ZeRO, gradients to.
        names = " ".join({row["name"] for row in rows})
        if each.name.startswith(("stage1-fp32", "stage2")):
            assert "reduce bucket" in names, each.run
        if each.name.startswith("stage3"):
            assert "reduce bucket" in names, each.run
            assert each.ranks == 1 or "all-gathered blocks.1.up.weight" in names, each.run
        assert each.problems == [], each.run


def test_losses_are_the_same(trained: dict[str, list[Trained]]) -> None:
    for each in (rank for ranks in trained.values() for rank in ranks):
        assert each.losses == each.plain_losses, each.run
        assert len(each.capture.steps()) == 3, each.run


def test_quantised_state(trained: dict[str, list[Trained]]) -> None:
    """bitsandbytes: two codes of a byte per element, a scale per 256 elements, and two code books.

    Partitions of fewer than 4,096 elements keep float32 state.
    """
    for each in trained.get("stage2-bf16-adamw8bit", ()):
        large, small = (held.elements for held in layout_of(each).optimizer_tensors)
        scales = -(-large // 256)
        expected = 2 * (large + 4 * scales) + 2 * 4 * 256 + 8 * small
        found = each.capture.categories_at(each.time_ns("step"))[Category.OPTIMIZER_STATE]
        assert found == expected, each.run


def test_gradients_in_backward_are_gradients(trained: dict[str, list[Trained]]) -> None:
    """Also those that hooks free before backward ends: all of each parameter's, in every backward."""
    parameters, _ = parameters_of("")
    whole = {"stage1-bf16", "stage2-bf16", "stage2-fp16", "stage3-bf16", "stage3-fp32"}
    for name in whole & set(trained):
        for each in trained[name]:
            size = Zero.from_config(settings(name), 1).weight_bytes
            begin, end = each.time_ns("forward"), each.time_ns("backward")
            found = {
                (row["name"], row["size_bytes"])
                for row in each.capture.to_arrow().to_pylist()
                if begin < row["alloc_ns"] < end and row["category"] == "gradient"
            }
            expected = {(each.name, each.elements * size) for each in parameters}
            assert expected <= found, each.run
