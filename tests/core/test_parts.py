"""Names survive flattening: bytes of a flat tensor belong to the parameters in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support import flat_library
from tests.support.flat_library import PADDING, FlatAdamW
from tests.support.streams import marks, names, paired, tags
from torch import nn

import memlens
import memlens_integrations
from memlens.answers import Allocation
from memlens.attribution.rules import attribute
from memlens.attribution.segments import segment
from memlens.events import Category, Certainty
from memlens.rank import RankCapture

A = 0x7F00_0000_1000
Range = tuple[int, int]


def parts_of(ranges: list[Range], size: int = 100) -> list[tuple[int, int, int]]:
    """(offset, bytes, number of the tag) of the parts of a block in which tensors lie."""
    blocks = paired([(1, "alloc", A, size)])
    told = tags([(2 + number, A, Category.WEIGHT) for number in range(len(ranges))])
    told["offset_bytes"] = np.array([start for start, _ in ranges], np.int64)
    told["size_bytes"] = np.array([end - start for start, end in ranges], np.int64)
    parts = attribute(blocks, segment(marks([]), names()), told).parts
    return list(
        zip(
            parts.offset_bytes.tolist(),
            parts.size_bytes.tolist(),
            parts.name.tolist(),
            strict=True,
        )
    )


def test_tensors_side_by_side_are_parts() -> None:
    assert parts_of([(40, 60), (0, 40)]) == [(0, 40, 1), (40, 20, 0)]


def test_a_tensor_that_fills_its_block_is_no_part() -> None:
    assert parts_of([(0, 100)]) == []


def test_views_are_parts_and_not_the_flat_tensor_they_lie_in() -> None:
    assert parts_of([(0, 90), (0, 40), (40, 90), (10, 20)]) == [(10, 10, 3), (40, 50, 2)]


def test_of_two_tensors_in_one_place_the_first_holds() -> None:
    assert parts_of([(0, 40), (0, 40)]) == [(0, 40, 0)]


def test_what_reaches_beyond_its_block_is_no_part() -> None:
    assert parts_of([(90, 110), (0, 40)]) == [(0, 40, 1)]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 60)), max_size=12))
def test_parts_never_overlap(drawn: list[tuple[int, int]]) -> None:
    found = parts_of([(start, start + length) for start, length in drawn])

    ends = [0, *(offset + size for offset, size, _ in found)]
    assert all(offset >= end for (offset, _, _), end in zip(found, ends, strict=False))
    assert ends[-1] <= 100


def test_a_part_has_the_category_of_its_block() -> None:
    blocks = paired([(1, "alloc", A, 100)])
    told = tags([(2, A, Category.WEIGHT), (3, A, Category.GRADIENT)])
    told["offset_bytes"][1] = 50

    parts = attribute(blocks, segment(marks([]), names()), told).parts

    assert parts.name.tolist() == [0]


# -- recorded ----------------------------------------------------------------------------------


class Net(nn.Module):
    """33 + 7 elements in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 3)
        self.second = nn.Linear(3, 1)
        self.third = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.third(self.second(torch.relu(self.first(x))))
        return result


def flatten(model: nn.Module) -> torch.Tensor:
    """Move all parameters into one storage, as views."""
    flat = torch.cat([each.detach().flatten() for each in model.parameters()])
    begin = 0
    for each in model.parameters():
        each.data = flat[begin : begin + each.numel()].view_as(each)
        begin += each.numel()
    return flat


def held(rank: RankCapture, category: Category, size_bytes: int) -> Allocation:
    """The one block of a category and size that is alive at the peak or later."""
    times = [rank.peak().time_ns, *(step.end_ns for step in rank.steps())]
    found = {
        each.address: each
        for time in times
        for each in rank.allocations_at(time, top=None)
        if each.category is category and each.size_bytes == size_bytes
    }
    assert len(found) == 1, found
    return next(iter(found.values()))


def test_views_of_a_flat_storage_are_told_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    flatten(model)
    with memlens.profile(out=tmp_path / "run") as session:
        model(torch.ones(4, 10)).sum().backward()
    rank = session.capture.rank(0)

    block = held(rank, Category.WEIGHT, 4 * 39)
    assert [(part.name, part.offset_bytes, part.size_bytes) for part in block.parts] == [
        ("first.weight", 0, 120),
        ("first.bias", 120, 12),
        ("second.weight", 132, 12),
        ("second.bias", 144, 4),
        ("third.weight", 148, 4),
        ("third.bias", 152, 4),
    ]
    weights = {
        usage.module: usage.categories[Category.WEIGHT]
        for usage in rank.modules_at(top=None)
        if Category.WEIGHT in usage.categories
    }
    assert weights == {"first": 132, "second": 16, "third": 8}


@pytest.fixture
def flat_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        memlens_integrations.ADAPTERS, "flat", "tests.support.flat_library:FlatAdapter"
    )


@pytest.fixture
def flat_run(flat_adapter: None, tmp_path: Path) -> RankCapture:
    """Three steps over elements 20 to 35 of 39: ten of first.weight, first.bias, two of second.weight."""
    with memlens.profile(out=tmp_path / "run") as session:
        torch.manual_seed(0)
        model = Net()
        optimizer = FlatAdamW(model, 20, 35)
        for _ in range(3):
            model(torch.ones(4, 10)).sum().backward()
            optimizer.step()
            kept = flat_library.gather(1000)
            flat_library.reduce(3000)
            del kept
    return session.capture.rank(0)


SHARES = [("first.weight[20:30]", 0, 40), ("first.bias", 40, 12), ("second.weight[0:2]", 52, 8)]


def test_a_partition_gradient_and_state_have_the_pieces_of_the_master(
    flat_run: RankCapture,
) -> None:
    size = 4 * (15 + PADDING)
    seen: dict[tuple[Category, str], list[Allocation]] = {}
    for row in range(len(flat_run.blocks.first)):
        if flat_run.blocks.size_bytes[row] == size and flat_run.attribution.parts.of(row):
            block = flat_run.allocation(row)
            seen.setdefault((block.category, block.name), []).append(block)
    assert set(seen) == {
        (Category.MASTER_WEIGHT, "flat master"),
        (Category.GRADIENT, "gradient of flat master"),
        (Category.OPTIMIZER_STATE, "exp_avg of flat master"),
        (Category.OPTIMIZER_STATE, "exp_avg_sq of flat master"),
    }
    for (_, name), blocks in seen.items():
        before = "" if name.startswith("gradient") else name.removesuffix("flat master")
        for block in blocks:
            assert block.certainty is Certainty.DECLARED
            assert [(part.name, part.offset_bytes, part.size_bytes) for part in block.parts] == [
                (before + text, offset, bytes_) for text, offset, bytes_ in SHARES
            ]
            assert [part.module for part in block.parts] == ["first", "first", "second"]


def test_a_flat_partition_counts_for_the_modules_in_it(flat_run: RankCapture) -> None:
    end = flat_run.steps()[-1].end_ns
    master = {
        usage.module: usage.categories[Category.MASTER_WEIGHT]
        for usage in flat_run.modules_at(end, top=None)
        if Category.MASTER_WEIGHT in usage.categories
    }
    assert master == {"first": 52, "second": 8, "": 4 * PADDING}
    for step in flat_run.steps():
        usages = flat_run.modules_at(step.peak_ns, top=None)
        assert sum(usage.total_bytes for usage in usages) == step.peak_bytes


def test_what_was_concluded_is_said_to_be(flat_run: RankCapture) -> None:
    buckets = [
        flat_run.allocation(row)
        for row in np.flatnonzero(flat_run.blocks.size_bytes == 4 * 64).tolist()
    ]
    assert [(each.category, each.name, each.certainty) for each in buckets] == 3 * [
        (Category.COMMUNICATION, "bucket", Certainty.INFERRED)
    ]


def test_a_scope_names_what_it_leaves_and_what_it_frees(flat_run: RankCapture) -> None:
    found = {
        int(size): Category(category)
        for size, category in zip(
            flat_run.blocks.size_bytes,
            flat_run.to_arrow()["category"].to_pylist(),
            strict=True,
        )
        if size > 1000
    }
    assert found == {
        4000: Category.COMMUNICATION,  # outlives gather
        8000: Category.TEMPORARY,
        12000: Category.COMMUNICATION,  # freed within reduce
    }


def test_how_a_training_is_spread_is_in_the_header(flat_run: RankCapture) -> None:
    assert flat_run.sharding == ("flat",)


@pytest.mark.parametrize("what", ["holdings", "sharding"])
def test_an_adapter_that_fails_is_left_alone(
    what: str, flat_adapter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(flat_library.FlatAdapter, what, fail)
    with memlens.profile(out=tmp_path / "run") as session:
        model = Net()
        optimizer = FlatAdamW(model, 0, 39)
        model(torch.ones(4, 10)).sum().backward()
        optimizer.step()
    (problem,) = session.capture.rank(0).coverage.problems
    assert "(RuntimeError: gone)" in problem
    assert session.capture.rank(0).steps()[-1].end_bytes > 0
