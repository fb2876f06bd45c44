"""Layouts of FSDP and DDP on models that can be counted by hand, and what holds for all of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.errors import UsageError
from memlens.sharding.ddp import ddp_layout
from memlens.sharding.fsdp import Fsdp, fsdp_layout
from memlens.sharding.fsdp_flat import FlatFsdp, flat_fsdp_layout
from memlens.sharding.layout import Parameter, Piece, RankLayout, total_bytes

MEBIBYTE = 1 << 20
GROUPS = [[Parameter("a", (5, 3)), Parameter("b", (2,))], [Parameter("c", (4,), trainable=False)]]


class TestFsdp2:
    def test_rows_go_to_ranks(self) -> None:
        """Five rows on two ranks: three, and two with one of padding."""
        first, _ = fsdp_layout(Fsdp(2), GROUPS, 0)
        second, _ = fsdp_layout(Fsdp(2), GROUPS, 1)
        assert [held.elements for held in second.weights] == [9, 1, 2]
        assert second.weights[0].pieces == (Piece("a", 0, 6, parameter_start=9),)
        # Gradients come padded out of one reduction; the state has no padding.
        assert first.gradient_bytes == second.gradient_bytes == (9 + 1) * 4
        assert second.gradients_after_backward[0].pieces[1] == Piece("b", 9, 1, 1)
        assert first.state_bytes() == (9 + 1) * 8 + 2 * 4
        assert second.state_bytes() == (6 + 1) * 8 + 2 * 4

    def test_what_is_gathered(self) -> None:
        _, groups = fsdp_layout(Fsdp(2, gather_bytes=2), GROUPS, 0)
        assert [held.size_bytes for held in groups[0].gathered] == [18 * 2, 2 * 2]
        assert groups[0].all_gather.size_bytes == 20 * 2
        assert groups[0].reduce_scatter.size_bytes == 20 * 2
        assert groups[1].reduce_scatter.size_bytes == 0
        _, groups = fsdp_layout(Fsdp(2, gather_bytes=2, reduce_bytes=4), GROUPS, 0)
        assert groups[0].reduce_scatter.size_bytes == 20 * 4

    def test_scalars_are_refused(self) -> None:
        with pytest.raises(UsageError, match="cannot shard a scalar, and s is one"):
            fsdp_layout(Fsdp(2), [[Parameter("s", ())]], 0)

    def test_ranks_without_rows(self) -> None:
        last, _ = fsdp_layout(Fsdp(4), [[Parameter("a", (2, 3))]], 3)
        assert last.weight_bytes == 12
        assert last.state_bytes() == 4


class TestFsdp1:
    UNIT = (Parameter("a", (5,)), Parameter("b", (4,)), Parameter("c", (1,)))

    def test_flat(self) -> None:
        """Ten elements on three ranks: four each, and two of padding."""
        last, units = flat_fsdp_layout(FlatFsdp(3), [self.UNIT], 2)
        assert last.weights[0].elements == 4
        assert last.weights[0].pieces == (Piece("b", 0, 1, 3), Piece("c", 1, 1))
        assert last.state_bytes() == 4 * 8 + 4
        assert units[0].elements == 12

    def test_original_parameters_are_aligned(self) -> None:
        """Multiples of four elements: b at 8, c at 12."""
        last, units = flat_fsdp_layout(FlatFsdp(3, use_orig_params=True), [self.UNIT], 2)
        assert units[0].elements == 15
        assert last.weights[0].pieces == (Piece("b", 0, 2, 2), Piece("c", 2, 1))
        assert last.state_bytes() == 3 * 8 + 2 * 4

    def test_frozen_units_have_no_gradients(self) -> None:
        layout, _ = flat_fsdp_layout(FlatFsdp(1), GROUPS, 0)
        assert layout.weight_bytes == 21 * 4
        assert layout.gradient_bytes == 17 * 4


class TestDdp:
    def test_buckets(self) -> None:
        """Backwards: the first is full from 1 MiB on, further ones from 25 MiB on."""
        parameters = [
            Parameter(name, (size,)) for name, size in zip("abc", (8, 9, 1 << 18), strict=True)
        ]
        layout = ddp_layout(parameters, 0, 2)
        assert [each.size_bytes for each in layout.communication] == [MEBIBYTE, 17 * 4]
        assert layout.communication[1].pieces == (Piece("b", 0, 9), Piece("a", 9, 8))
        assert layout.weight_bytes == layout.gradient_bytes == MEBIBYTE + 17 * 4

    def test_gradients_in_buckets(self) -> None:
        layout = ddp_layout([Parameter("a", (8,))], 0, 2, gradients_are_views=True)
        assert layout.gradient_bytes == 0
        assert total_bytes(layout.communication) == 32


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
groups_of_parameters = st.lists(
    st.lists(shapes, min_size=1, max_size=4), min_size=1, max_size=3
).map(
    lambda found: [
        [Parameter(f"p{group}.{index}", shape) for index, shape in enumerate(shapes)]
        for group, shapes in enumerate(found)
    ]
)


@given(groups_of_parameters, st.integers(1, 9), st.sampled_from(["2", "1", "1 original"]))
def test_parts_tile_the_parameters(
    groups: list[list[Parameter]], world_size: int, which: str
) -> None:
    """Across ranks each element is held exactly once, and all ranks hold as much."""

    def layout(rank: int) -> RankLayout:
        if which == "2":
            return fsdp_layout(Fsdp(world_size), groups, rank)[0]
        fsdp = FlatFsdp(world_size, use_orig_params=which != "1")
        return flat_fsdp_layout(fsdp, groups, rank)[0]

    ranks = [layout(rank) for rank in range(world_size)]
    seen = Counter(
        (piece.parameter, piece.parameter_start + at)
        for each in ranks
        for held in each.weights
        for piece in held.pieces
        for at in range(piece.count)
    )
    every = [each for group in groups for each in group]
    assert seen == {(each.name, at): 1 for each in every for at in range(each.elements)}
    assert len({each.weight_bytes for each in ranks}) == 1
    padding = sum(held.padding_elements for each in ranks for held in each.weights)
    rows = {each.name: each.elements // each.shape[0] for each in every}
    if which == "2":
        assert padding <= sum(rows.values()) * (world_size - 1)
    elif which == "1":
        assert padding <= len(groups) * (world_size - 1)
    else:
        assert padding <= len(groups) * (world_size - 1) + len(every) * 3
