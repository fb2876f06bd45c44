"""What would have let a request through: every figure by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memlens.analysis.circumstances import Circumstances
from memlens.analysis.fit import fit_of
from memlens.analysis.remedies import Remedy, remedies_for, together_bytes, two_together
from memlens.answers import Allocation, Frame, Growth, OutOfMemory
from memlens.events import Category, Certainty, Phase

GIB = 2**30
EXPANDABLE: dict[str, object] = {"expandable_segments": True}
EVENT = OutOfMemory(
    time_ns=1,
    reason="own",
    peer_rank=None,
    device="cuda:0",
    device_index=0,
    step=3,
    requested_bytes=2 * GIB,
    stream=0,
    device_total_bytes=80 * GIB,
    device_free_bytes=GIB,
    limit_bytes=None,
    allocated_bytes=70 * GIB,
    reserved_bytes=77 * GIB,
    private_pool_bytes=0,
    pending_bytes=0,
    free_pieces=(),
    free_pieces_bytes=0,
    largest_free_bytes=0,
    allocator_settings=EXPANDABLE,
    stack=(),
)
LOSS = (
    Frame("main", "train.py", 9),
    Frame("cross_entropy", "/site-packages/torch/nn/functional.py", 3),
)


def block(
    category: Category,
    size_bytes: int,
    *,
    name: str = "",
    module: str = "",
    stack: tuple[Frame, ...] = (),
) -> Allocation:
    return Allocation(
        address=0,
        size_bytes=size_bytes,
        category=category,
        certainty=Certainty.DECLARED,
        name=name,
        module=module,
        phase=Phase.FORWARD,
        step=0,
        alloc_ns=0,
        free_ns=None,
        preexisting=False,
        stack=stack,
    )


def case(
    *blocks: Allocation, phase: Phase = Phase.BACKWARD, world_size: int = 1, **changes: Any
) -> Circumstances:
    event = replace(EVENT, **changes)
    fit = fit_of(event)
    assert fit is not None
    return Circumstances(event, fit, phase, blocks, world_size)


def only(found: tuple[Remedy, ...], start: str) -> Remedy:
    (remedy,) = (remedy for remedy in found if remedy.change.startswith(start))
    return remedy


def frees(found: tuple[Remedy, ...]) -> dict[str, int]:
    return {remedy.change.split(" ")[0]: remedy.frees_bytes for remedy in found}


ZERO_GRAD = "optimizer.zero_grad(set_to_none=True)"


@pytest.mark.parametrize(
    ("blocks", "phase", "expected"),
    [
        ([block(Category.OPTIMIZER_TEMPORARY, 3 * GIB)], Phase.BACKWARD, {"optimizer": 3 * GIB}),
        # In the first step the request may be for the state itself; later it is not made at all.
        ([block(Category.OPTIMIZER_TEMPORARY, 3 * GIB)], Phase.OPTIMIZER, {"optimizer": 5 * GIB}),
        (
            [block(Category.GRADIENT, 5 * GIB), block(Category.GRADIENT, 3 * GIB)],
            Phase.BACKWARD,
            {"update": 3 * GIB},
        ),
        ([block(Category.GRADIENT, 8 * GIB)], Phase.FORWARD, {ZERO_GRAD: 8 * GIB}),
        (
            [
                block(Category.ACTIVATION, 10 * GIB),
                block(Category.INPUT, 2 * GIB),
                block(Category.TEMPORARY, 4 * GIB),
            ],
            Phase.FORWARD,
            {"half": 8 * GIB},
        ),
        (
            [block(Category.MASTER_WEIGHT, 4 * GIB, name="master of a")],
            Phase.FORWARD,
            {"weights": 4 * GIB},
        ),
        # 2,131,968 bytes of 8-bit state for 1,048,576 parameters, against 4,194,308 in 16 bits.
        (
            [block(Category.OPTIMIZER_STATE, 8 * GIB, name="exp_avg of a")],
            Phase.FORWARD,
            {"an": int(8 * GIB * (1 - 2131968 / 4194308))},
        ),
        # Already quantised, or of another kind: nothing is known of it.
        ([block(Category.OPTIMIZER_STATE, 8 * GIB, name="state1 of a")], Phase.FORWARD, {}),
    ],
)
def test_what_it_frees(blocks: list[Allocation], phase: Phase, expected: dict[str, int]) -> None:
    assert frees(remedies_for(case(*blocks, phase=phase))) == expected


def test_a_request_in_the_first_step_is_not_said_to_be_avoided() -> None:
    temporary = block(Category.OPTIMIZER_TEMPORARY, 3 * GIB)
    found = remedies_for(case(temporary, phase=Phase.OPTIMIZER, step=0))
    assert only(found, "optimizer with fused").parts == {"optimizer_temporary": 3 * GIB}


@pytest.mark.parametrize("name", ["state1 of a", "exp_avg.codes of a"])
def test_fused_is_not_for_every_optimizer(name: str) -> None:
    found = remedies_for(
        case(
            block(Category.OPTIMIZER_STATE, GIB, name=name),
            block(Category.OPTIMIZER_TEMPORARY, 3 * GIB),
        )
    )
    assert "optimizer" not in frees(found)


def test_moments_beside_master_weights_are_of_32_bits() -> None:
    found = remedies_for(
        case(
            block(Category.OPTIMIZER_STATE, 8 * GIB, name="exp_avg_sq of a"),
            block(Category.MASTER_WEIGHT, 4 * GIB),
        )
    )
    state = only(found, "an optimizer with 8-bit state")
    assert state.frees_bytes == int(8 * GIB * (1 - 2131968 / 8388612))
    assert "25 %" in state.reason


def test_state_is_shared_among_ranks() -> None:
    blocks = [
        block(Category.OPTIMIZER_STATE, 8 * GIB, name="momentum_buffer of a"),
        block(Category.MASTER_WEIGHT, 4 * GIB),
    ]
    assert "ZeRO" not in frees(remedies_for(case(*blocks)))
    zero = only(remedies_for(case(*blocks, world_size=4)), "ZeRO or FSDP2 over the 4 ranks")
    assert zero.parts == {"optimizer_state": 6 * GIB, "master_weight": 3 * GIB}


def layer(number: int, *, inner: int, own: int) -> list[Allocation]:
    place = f"model.layers.{number}"
    return [
        block(Category.ACTIVATION, inner * GIB, module=f"{place}.mlp.up"),
        block(Category.ACTIVATION, own * GIB, module=place),
    ]


def test_checkpointing_keeps_the_input_of_each_layer_and_all_of_one() -> None:
    blocks = [each for number in range(3) for each in layer(number, inner=4, own=1)]
    blocks += layer(3, inner=6, own=1)
    blocks.append(block(Category.ACTIVATION, 9 * GIB, module="model.head"))
    found = remedies_for(case(*blocks))
    assert only(found, "activation checkpointing").frees_bytes == (3 * 4 + 6 - 6) * GIB


def test_checkpointing_takes_the_largest_block_for_the_input_where_it_is_not_known() -> None:
    blocks = [
        block(Category.ACTIVATION, size * GIB, module=f"layers.{number}.fc")
        for number in range(3)
        for size in (3, 2)
    ]
    found = remedies_for(case(*blocks))
    assert only(found, "activation checkpointing").frees_bytes == (3 * 2 - 2) * GIB


def test_a_single_layer_or_one_already_checkpointed_is_not_proposed() -> None:
    assert "activation" not in frees(remedies_for(case(*layer(0, inner=4, own=1))))
    kept = [block(Category.ACTIVATION, GIB, module=f"layers.{number}") for number in range(4)]
    assert "activation" not in frees(remedies_for(case(*kept)))


def test_a_loss_in_chunks() -> None:
    found = remedies_for(
        case(
            block(Category.ACTIVATION, 8 * GIB, stack=LOSS),
            block(Category.TEMPORARY, 16 * GIB, stack=LOSS),
            block(Category.ACTIVATION, 8 * GIB, module="head"),
            stack=LOSS,
        )
    )
    loss = only(found, "cross entropy in 8 chunks")
    # Of the request seven parts of eight as well.
    assert loss.parts == {
        "request": 7 * GIB // 4,
        "activation": 7 * GIB,
        "temporary": 14 * GIB,
    }
    assert loss.where == LOSS[0]


def test_what_accumulates_comes_first() -> None:
    situation = case(block(Category.ACTIVATION, 6 * GIB))
    leak = Growth(
        category=Category.ACTIVATION,
        module="head",
        name="",
        bytes_per_step=GIB,
        first_bytes=GIB,
        last_bytes=4 * GIB,
        steps=4,
        stack=(Frame("main", "train.py", 9),),
    )
    found = remedies_for(replace(situation, growth=[leak]))
    assert found[0].change == "let go of what head makes (activation)"
    assert found[0].parts == {"activation": 3 * GIB}
    assert found[0].reason == "accumulates by 1.00 GiB per step over 4 steps"
    assert found[0].where == leak.stack[0]
    # No more than there was when the request failed.
    capped = remedies_for(replace(situation, growth=[replace(leak, last_bytes=90 * GIB)]))
    assert capped[0].frees_bytes == 6 * GIB


def test_expandable_segments_do_not_join_what_is_in_the_pool_for_small_ones() -> None:
    pieces: dict[str, Any] = {
        "free_pieces": ((GIB, "large", 0), (GIB // 2, "large", 0), (GIB // 4, "small", 0)),
        "free_pieces_bytes": 7 * GIB // 4,
        "largest_free_bytes": GIB,
    }
    found = remedies_for(case(allocator_settings={}, **pieces))
    assert only(found, "PYTORCH_CUDA_ALLOC_CONF").frees_bytes == 3 * GIB // 2
    assert only(found, "PYTORCH_CUDA_ALLOC_CONF").suffices
    assert remedies_for(case(**pieces)) == ()  # they are on already


def test_the_fraction_of_the_process() -> None:
    found = remedies_for(
        case(limit_bytes=40 * GIB, device_free_bytes=30 * GIB, reserved_bytes=39 * GIB)
    )
    fraction = only(found, "raise torch.cuda.set_per_process_memory_fraction")
    assert (fraction.parts, fraction.suffices) == ({"limit": 29 * GIB}, True)
    # 11 GiB are others', but it is not for them that the request failed.
    assert "see" not in frees(found)


def test_what_others_give_back_is_of_use_within_the_limit_alone() -> None:
    # 79 GiB are in use, 70 of them by others; the process has 9 and may have 12.
    event: dict[str, Any] = {"limit_bytes": 12 * GIB, "reserved_bytes": 9 * GIB}
    found = remedies_for(case(requested_bytes=5 * GIB, **event))
    others = only(found, "see who else uses the device")
    assert (others.frees_bytes, others.suffices) == (2 * GIB, False)


def test_other_processes() -> None:
    found = remedies_for(case(reserved_bytes=70 * GIB))
    # 79 GiB are in use; 70 of them are ours, and 2 may well be.
    assert only(found, "see who else uses the device").frees_bytes == 7 * GIB


def test_other_streams() -> None:
    found = remedies_for(case(pending_bytes=GIB))
    assert only(found, "have the streams wait").parts == {"pending": GIB}
    assert found[0].suffices


def test_what_suffices_comes_first() -> None:
    found = remedies_for(
        case(
            block(Category.OPTIMIZER_TEMPORARY, 3 * GIB),
            block(Category.OPTIMIZER_STATE, 16 * GIB, name="exp_avg of a"),
            world_size=4,
            requested_bytes=8 * GIB,
        )
    )
    assert [(remedy.frees_bytes // GIB, remedy.suffices) for remedy in found] == [
        (12, True),
        (7, True),
        (3, False),
    ]


def test_two_that_suffice_together() -> None:
    situation = case(
        block(Category.OPTIMIZER_TEMPORARY, 6 * GIB),
        block(Category.INPUT, 5 * GIB),
        requested_bytes=9 * GIB,
    )
    together = two_together(situation, remedies_for(situation))
    assert together is not None
    assert [remedy.frees_bytes for remedy in together] == [6 * GIB, 5 * GIB // 2]


def test_the_same_bytes_are_not_freed_twice() -> None:
    # Half the batch frees 10 of 20 GiB, checkpointing 15 - 5 of the same.
    blocks = [each for number in range(3) for each in layer(number, inner=5, own=1)]
    situation = case(
        *blocks, block(Category.ACTIVATION, 2 * GIB, module="head"), requested_bytes=13 * GIB
    )
    found = remedies_for(situation)
    assert frees(found) == {"half": 10 * GIB, "activation": 10 * GIB}
    assert together_bytes(found) == 10 * GIB
    assert two_together(situation, found) is None


def test_of_what_two_free_the_larger_part_counts() -> None:
    # ZeRO frees 3 of 4 GiB of state and 3 of 4 of master weights; 8-bit state some of the same state.
    situation = case(
        block(Category.OPTIMIZER_STATE, 4 * GIB, name="exp_avg of a"),
        block(Category.MASTER_WEIGHT, 4 * GIB),
        requested_bytes=9 * GIB,
        world_size=4,
    )
    found = remedies_for(situation)
    zero, eight, rounded = (only(found, start) for start in ("ZeRO", "an optimizer", "weights"))
    assert eight.frees_bytes < zero.parts["optimizer_state"]
    assert together_bytes((zero, eight)) == zero.frees_bytes == 6 * GIB
    assert together_bytes((zero, rounded)) == 7 * GIB  # 3 of state, all 4 of master weights
    assert two_together(situation, found) is None


def test_nobody_needs_two_where_one_suffices() -> None:
    situation = case(block(Category.INPUT, 5 * GIB), block(Category.GRADIENT, 9 * GIB))
    assert two_together(situation, remedies_for(situation)) is None


def test_small_change_is_not_proposed() -> None:
    # Half a percent of what is allocated, 0.35 GiB, is the least.
    assert remedies_for(case(block(Category.INPUT, GIB // 2))) == ()
    assert frees(remedies_for(case(block(Category.INPUT, GIB)))) == {"half": GIB // 2}


def test_a_request_for_which_there_is_room_by_now() -> None:
    assert remedies_for(case(block(Category.INPUT, 9 * GIB), device_free_bytes=3 * GIB)) == ()
