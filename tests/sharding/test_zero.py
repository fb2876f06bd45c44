"""Layouts of ZeRO on models that can be counted by hand, and what holds for all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.errors import UsageError
from memlens.events import Category
from memlens.sharding.layout import Held, Parameter, Piece, State, total_bytes
from memlens.sharding.zero import Zero, zero_layout

SMALL = (Parameter("a", (3, 5)), Parameter("b", (7,)), Parameter("c", (2, 3)))


def layouts(zero: Zero, parameters: Any = SMALL, groups: Any = None) -> list[Any]:
    return [zero_layout(zero, parameters, rank, groups) for rank in range(zero.world_size)]


class TestCountedByHand:
    def test_a_parameter_straddles_the_boundary(self) -> None:
        """28 elements on two ranks: a (15) crosses from the first 14 into the second."""
        first, second = layouts(Zero(2, 2))
        assert [each.weight_bytes for each in (first, second)] == [56, 56]
        assert [each.master_weight_bytes for each in (first, second)] == [56, 56]
        assert first.master_weights[0].pieces == (Piece("a", 0, 14),)
        assert second.master_weights[0].pieces == (
            Piece("a", 0, 1, parameter_start=14),
            Piece("b", 1, 7),
            Piece("c", 8, 6),
        )
        # Both keep the whole gradient of a: 15, and 15 + 7 + 6.
        assert [each.gradient_bytes for each in (first, second)] == [30, 56]
        assert first.state_bytes() == 14 * 8 + 4

    def test_padding_of_flat_groups(self) -> None:
        """28 elements on three ranks: a multiple of 6 is 30, so that the last holds 2 for nobody."""
        ranks = layouts(Zero(1, 3))
        assert [each.weight_bytes for each in ranks] == [60] * 3
        assert [each.master_weights[0].padding_elements for each in ranks] == [0, 0, 2]
        # The zeros that fill its gradients are a tensor of their own.
        assert [held.elements for held in ranks[2].gradients_after_backward] == [7 + 6, 2]

    def test_ranks_beyond_the_model_hold_padding(self) -> None:
        ranks = layouts(Zero(2, 4), [Parameter("one", (1,))])
        assert [each.master_weight_bytes for each in ranks] == [8] * 4
        assert [each.gradient_bytes for each in ranks] == [2 + 2, 4, 4, 4]

    def test_every_parameter_is_padded_at_stage_3(self) -> None:
        """Parts of two ranks: 8 of 15, 4 of 7, 3 of 6."""
        first, second = layouts(Zero(3, 2, reduce_bucket_size=10))
        for each in (first, second):
            assert each.weight_bytes == each.gradient_bytes == 15 * 2
            assert each.master_weight_bytes == 15 * 4
            assert total_bytes(each.communication) == 20
        assert second.weights[0].pieces == (
            Piece("a", 0, 7, parameter_start=8),
            Piece("b", 8, 3, parameter_start=4),
            Piece("c", 12, 3, parameter_start=3),
        )
        # All are below the threshold: gathered for good, with their padding.
        assert total_bytes(first.persistent) == (16 + 8 + 6) * 2

    def test_persistence_threshold(self) -> None:
        kept = layouts(Zero(3, 2, parameter_persistence_threshold=7))[0].persistent
        assert [each.name for each in kept] == ["b", "c"]
        kept = layouts(Zero(3, 2, model_persistence_threshold=8))[0].persistent
        assert [each.name for each in kept] == ["b"]

    def test_sub_groups(self) -> None:
        """The optimizer updates 8, then 4 + 3 elements; the threshold is met, not exceeded."""
        layout = layouts(Zero(3, 2, sub_group_size=7))[0]
        assert [each.elements for each in layout.optimizer_tensors] == [8, 7]
        assert [total_bytes(each) for each in layout.gradients_in_step] == [30 + 32, 30 + 28]

    def test_groups_in_step(self) -> None:
        """While the first group is updated, gradients of both are there, and one of them in fp32."""
        layout = layouts(Zero(2, 1), groups=[["a"], ["b", "c"]])[0]
        assert layout.gradient_bytes == 28 * 2 + 2 + 2  # 15 and 13 have one padded element each
        assert [total_bytes(each) for each in layout.gradients_in_step] == [
            28 * 2 + 16 * 4 + 2,
            14 * 4,
        ]

    def test_fp32_gradients_of_one_parameter_are_not_copied(self) -> None:
        """Flattening one tensor makes no copy, and neither does the cast to fp32."""
        layout = layouts(Zero(2, 1, "fp32"), [Parameter("a", (4, 4))])[0]
        assert [total_bytes(each) for each in layout.gradients_in_step] == [64]

    def test_gradients_accumulated_in_fp32(self) -> None:
        layout = layouts(Zero(2, 2, accumulation="fp32"))[1]
        assert layout.gradient_bytes == 14 * 4

    def test_bf16_optimizer_keeps_all_gradients(self) -> None:
        """Stage 1, bf16, accumulated in fp32: whole on every rank, beside those in bf16."""
        layout = layouts(Zero(1, 2, accumulation="fp32"))[0]
        assert total_bytes(layout.gradients_between_steps) == 28 * 4
        assert layout.gradient_bytes == 28 * 4 + 28 * 2
        assert not layout.communication

    def test_offload(self) -> None:
        layout = layouts(Zero(2, 2, offload_optimizer=True))[0]
        assert total_bytes(layout.master_weights, on_host=True) == 14 * 4
        # In fp32 for the step, and what one gradient is staged in; on the device, the latter only.
        assert total_bytes(layout.gradients_after_backward, on_host=True) == 14 * 4 + 15 * 2
        assert total_bytes(layout.gradients_after_backward, on_host=False) == 15 * 2

    def test_round_robin(self) -> None:
        layout = layouts(Zero(1, 2, round_robin_gradients=True))[0]
        assert [piece.parameter for piece in layout.weights[0].pieces] == ["a", "c", "b"]

    def test_parameters_begin_at_multiples_of_16_bytes(self) -> None:
        flat = layouts(Zero(1, 1, parameter_alignment=True))[0].weights[0]
        assert [piece.start for piece in flat.pieces] == [0, 16, 24]
        assert flat.elements == 30

    def test_frozen_parameters_stay_as_they_are(self) -> None:
        parameters = [*SMALL, Parameter("d", (5,), trainable=False)]
        first = layouts(Zero(2, 2), parameters)[0]
        assert first.weight_bytes == (28 + 5) * 2
        assert first.master_weight_bytes == 14 * 4
        third = layouts(Zero(3, 2), parameters)[0]
        assert [held.name for held in third.weights] == ["weights", "d"]
        assert third.weight_bytes == (15 + 3) * 2

    def test_stage_0(self) -> None:
        fp32, bf16 = layouts(Zero(0, 1, "fp32"))[0], layouts(Zero(0, 1, "bf16"))[0]
        assert (fp32.weight_bytes, fp32.master_weight_bytes, fp32.gradient_bytes) == (112, 0, 112)
        assert (bf16.weight_bytes, bf16.master_weight_bytes, bf16.gradient_bytes) == (56, 112, 56)
        assert fp32.state_bytes() == bf16.state_bytes() == 28 * 8 + 3 * 4

    def test_buckets(self) -> None:
        def sizes(**more: Any) -> list[int]:
            layout = layouts(Zero(2, 2, reduce_bucket_size=9, **more))[0]
            return [each.size_bytes for each in layout.communication]

        assert sizes() == [18]
        assert sizes(overlap_comm=True) == [18, 18]
        assert sizes(contiguous_gradients=False) == []


class TestConfiguration:
    def test_read(self) -> None:
        config = {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "float32"},
            "gradient_accumulation_steps": 4,
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": 1e6,
                "stage3_param_persistence_threshold": "auto",
                "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "none"},
                "overlap_comm": False,
            },
        }
        zero = Zero.from_config(config, 8)
        assert zero == Zero(
            3,
            8,
            "bf16",
            "fp32",
            gradient_accumulation_steps=4,
            offload_optimizer=True,
            overlap_comm=False,
            reduce_bucket_size=1_000_000,
        )

    def test_empty(self) -> None:
        assert Zero.from_config({}, 2) == Zero(0, 2, "fp32")

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"stage": 4, "world_size": 2}, "no ZeRO stage 4"),
            ({"stage": 1, "world_size": 0}, "at least one rank"),
            ({"stage": 1, "world_size": 2, "precision": "fp8"}, "not a precision: 'fp8'"),
            ({"stage": 2, "world_size": 2, "offload_parameters": True}, "at stage 3 only"),
        ],
    )
    def test_what_there_is_not(self, values: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            Zero(**values)

    def test_what_is_not_modelled(self) -> None:
        with pytest.raises(UsageError, match="accumulated in bf16 are not modelled"):
            layouts(Zero(1, 2, "fp32", "bf16"))


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
models = st.lists(st.tuples(shapes, st.booleans()), min_size=1, max_size=6).map(
    lambda found: [
        Parameter(f"p{index}", shape, trainable=frozen or index == 0)
        for index, (shape, frozen) in enumerate(found)
    ]
)
worlds = st.builds(
    Zero,
    stage=st.integers(1, 3),
    world_size=st.integers(1, 9),
    precision=st.sampled_from(["fp32", "bf16"]),
    round_robin_gradients=st.booleans(),
    parameter_alignment=st.booleans(),
    sub_group_size=st.integers(1, 200),
)


class TestAllModels:
    @given(models, worlds, st.integers(0, 5))
    def test_master_weights_tile_what_is_trained(
        self, parameters: list[Parameter], zero: Zero, boundary: int
    ) -> None:
        """Across ranks each element is held exactly once; within a storage nothing overlaps."""
        names = [each.name for each in parameters]
        groups = [group for group in (names[:boundary], names[boundary:]) if group]
        seen: Counter[tuple[str, int]] = Counter()
        for layout in layouts(zero, parameters, groups):
            for held in layout.master_weights:
                assert_disjoint(held)
                for piece in held.pieces:
                    first = piece.parameter_start
                    seen.update((piece.parameter, at) for at in range(first, first + piece.count))
        trained = [each for each in parameters if each.trainable]
        assert seen == {(each.name, at): 1 for each in trained for at in range(each.elements)}

    @given(models, worlds)
    def test_padding_is_bounded(self, parameters: list[Parameter], zero: Zero) -> None:
        ranks = layouts(zero, parameters)
        for attribute in ("weights", "master_weights"):
            assert len({total_bytes(getattr(each, attribute)) for each in ranks}) == 1
        padding = sum(held.padding_elements for each in ranks for held in each.master_weights)
        trained = sum(each.trainable for each in parameters)
        if zero.stage == 3:
            assert padding <= trained * (zero.world_size - 1)
        else:
            between = 7 * (trained - 1) if zero.parameter_alignment else 0
            assert padding < 2 * zero.world_size + between

    @given(models, worlds)
    def test_gradients_cover_the_partition(self, parameters: list[Parameter], zero: Zero) -> None:
        """What is updated has a gradient, and what straddles costs less than the largest twice."""
        for layout in layouts(zero, parameters):
            held = {
                piece.parameter for each in layout.gradients_after_backward for piece in each.pieces
            }
            updated = {piece.parameter for each in layout.master_weights for piece in each.pieces}
            assert updated <= held
            least = sum(each.elements for each in layout.master_weights) * zero.weight_bytes
            largest = max(each.elements for each in parameters if each.trainable)
            assert least <= layout.gradient_bytes <= least + 2 * largest * zero.weight_bytes

    @given(models, st.sampled_from(["fp32", "bf16"]))
    def test_one_rank_holds_everything(self, parameters: list[Parameter], precision: str) -> None:
        size = {"fp32": 4, "bf16": 2}[precision]
        elements = sum(each.elements for each in parameters)
        for stage in (1, 2, 3):
            layout = layouts(Zero(stage, 1, precision), parameters)[0]
            padding = sum(each.padding_elements for each in layout.weights)
            assert layout.weight_bytes == (elements + padding) * size
            assert padding <= 1
            assert not layout.persistent


def assert_disjoint(held: Held) -> None:
    end = 0
    for piece in held.pieces:
        assert piece.start >= end
        end = piece.start + piece.count
    assert end <= held.elements


def test_state_of_other_optimizers() -> None:
    tensors = [Held("x", Category.MASTER_WEIGHT, 10, 4), Held("y", Category.MASTER_WEIGHT, 6, 4)]
    assert State(4, 0).of(tensors) == 64
    assert State().of(tensors) == 16 * 8 + 2 * 4
