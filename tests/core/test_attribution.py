"""Attribution, from arrays built by hand: pairing, segments, rules, and that nothing counts twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.streams import (
    Array,
    Event,
    Mark,
    brute_force,
    marks,
    names,
    paired,
    tags,
    witnessed,
)

from memlens.attribution.lifetimes import FOREVER, Lifetimes
from memlens.attribution.rules import Attribution, attribute
from memlens.attribution.segments import Scope, Segments, segment
from memlens.events import Category, Certainty, MarkKind, Phase

CATEGORIES = list(Category)
PHASES = list(Phase)
A, B = 0x7F00_0000_1000, 0x7F00_0000_2000
"""Addresses."""


def blocks(found: Lifetimes) -> list[tuple[int, int, int, int | None]]:
    """(address, bytes, from, until) of each lifetime."""
    return [
        (address, size, begin, None if end == FOREVER else end)
        for address, size, begin, end in zip(
            found.address.tolist(),
            found.size_bytes.tolist(),
            found.alloc_ns.tolist(),
            found.free_ns.tolist(),
            strict=True,
        )
    ]


# -- pairing -----------------------------------------------------------------------------------


def test_an_address_is_reused() -> None:
    rows: list[Event] = [
        (1, "alloc", A, 100),
        (2, "free", A, 100),
        (3, "alloc", A, 40),
        (4, "alloc", B, 7),
    ]
    found = paired(rows)

    assert blocks(found) == [(A, 100, 1, 2), (A, 40, 3, None), (B, 7, 4, None)]
    assert found.running_bytes().tolist() == [100, 0, 40, 47]
    assert witnessed(rows).tolist() == [100, 0, 40, 47]
    assert found.lost_events == 0


def test_a_missing_free_ends_where_the_address_is_given_out_again() -> None:
    rows: list[Event] = [(1, "alloc", A, 100), (5, "alloc", A, 40), (6, "free", A, 40)]
    found = paired(rows)

    assert blocks(found) == [(A, 100, 1, 5), (A, 40, 5, 6)]
    assert found.running_bytes().tolist() == [100, 40, 0]
    assert found.lost_events == 1
    # The allocator did not count what it did not tell: the witness sees both.
    assert witnessed(rows).tolist() == [100, 140, 100]


def test_a_missing_allocation_is_noticed() -> None:
    found = paired([(1, "alloc", A, 100), (2, "free", A, 100), (3, "free", A, 40)])

    assert blocks(found) == [(A, 100, 1, 2)]
    assert found.running_bytes().tolist() == [100, 0, 0]
    assert found.lost_events == 1


def test_a_block_from_before_that_no_census_saw_is_not_lost() -> None:
    """The profiler tells the end of what an earlier session in this process saw begin."""
    found = paired([(1, "free", A, 40), (2, "alloc", A, 10), (3, "alloc", B, 5)])

    assert blocks(found) == [(A, 10, 2, None), (B, 5, 3, None)]
    assert found.running_bytes().tolist() == [0, 10, 15]
    assert found.lost_events == 0


def test_the_census_counts_from_the_beginning_and_not_for_the_witness() -> None:
    rows: list[Event] = [(0, "census", A, 64), (0, "census", B, 32), (7, "census_free", A, 64)]
    found = paired(rows)

    assert blocks(found) == [(A, 64, 0, 7), (B, 32, 0, None)]
    assert found.preexisting.tolist() == [True, True]
    assert found.running_bytes().tolist() == [64, 96, 32]
    assert witnessed(rows).tolist() == [0, 0, 0]
    assert found.lost_events == 0


@pytest.mark.parametrize("first", ["census_free", "free"])
def test_an_end_that_is_told_twice_counts_once(first: str) -> None:
    """A block that both the weak reference and the profiler know: whichever comes first."""
    second = "free" if first == "census_free" else "census_free"
    found = paired(
        [(0, "census", A, 64), (7, first, A, 64), (8, second, A, 64), (9, "alloc", A, 3)]
    )

    assert blocks(found) == [(A, 64, 0, 7), (A, 3, 9, None)]
    assert found.running_bytes().tolist() == [64, 0, 0, 3]
    assert found.lost_events == 0


def test_a_census_that_finds_what_was_recorded_already_gives_way() -> None:
    """Made between the start of the recording and the census: both tell of it."""
    found = paired([(0, "census", A, 64), (2, "alloc", A, 64), (9, "free", A, 64)])

    assert blocks(found) == [(A, 64, 0, 2), (A, 64, 2, 9)]
    assert found.running_bytes().tolist() == [64, 64, 0]
    assert found.lost_events == 0


def test_events_are_put_in_order_of_time_and_keep_their_order_within_it() -> None:
    found = paired(
        [(5, "alloc", B, 2), (5, "free", B, 2), (1, "alloc", A, 100), (5, "free", A, 100)]
    )

    assert blocks(found) == [(A, 100, 1, 5), (B, 2, 5, 5)]
    assert found.running_bytes().tolist() == [100, 102, 100, 0]
    assert found.lost_events == 0


def test_a_gap_in_the_recording_ends_what_it_hides() -> None:
    rows: list[Event] = [
        (1, "alloc", A, 100),
        (2, "alloc", B, 10),
        (30, "census", B, 10),  # is still there; A is not
        (31, "alloc", A, 5),
        (32, "free", A, 5),
        (33, "free", B, 10),
    ]
    found = paired(rows, on_ns=[0, 30], off_ns=[20])

    assert blocks(found) == [
        (A, 100, 1, 20),
        (B, 10, 2, 20),
        (B, 10, 30, 33),
        (A, 5, 31, 32),
    ]
    assert found.running_bytes().tolist() == [100, 110, 10, 15, 10, 0]
    # Each stretch has a count of its own.
    assert witnessed(rows, on_ns=[0, 30]).tolist() == [100, 110, 0, 5, 0, -10]
    assert found.lost_events == 0


def test_no_events() -> None:
    found = paired([])

    assert blocks(found) == []
    assert found.running_bytes().tolist() == []
    assert found.lost_events == 0


def test_some_blocks_alone() -> None:
    found = paired([(1, "alloc", A, 100), (2, "alloc", B, 10), (3, "free", A, 100)])

    assert found.running_bytes(np.array([True, False])).tolist() == [100, 100, 0]
    assert found.running_bytes(np.array([False, True])).tolist() == [0, 10, 10]


# -- segments ----------------------------------------------------------------------------------

STEP: list[Mark] = [
    (10, "module_enter", 0),
    (12, "module_enter", 1),
    (14, "module_exit", 1, 1),
    (16, "module_exit", 0, 1),
    (20, "backward_enter"),
    (22, "backward_module", 1),
    (26, "backward_exit"),
    (30, "optimizer_enter", 0),
    (34, "optimizer_exit", 0),
    (35, "step", -1, 1),
]
"""A model (0) with one layer (1): forward, loss, backward, optimizer."""


def segmented(rows: Sequence[Mark]) -> Segments:
    return segment(marks(rows), names({9: ("reducer", "communication")}))


def at(found: Segments, time: int) -> tuple[Phase, int, Scope, int]:
    """Phase, module, scope and step of a moment."""
    place = int(found.at(np.array([time]))[0])
    return (
        PHASES[found.phase[place]],
        int(found.module[place]),
        Scope(int(found.scope[place])),
        int(found.step[place]),
    )


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (5, (Phase.INIT, -1, Scope.NONE, 0)),
        (10, (Phase.FORWARD, 0, Scope.MODULE, 0)),
        (13, (Phase.FORWARD, 1, Scope.MODULE, 0)),
        (15, (Phase.FORWARD, 0, Scope.MODULE, 0)),
        (18, (Phase.FORWARD, -1, Scope.LOSS, 0)),
        (21, (Phase.BACKWARD, -1, Scope.BACKWARD, 0)),
        (24, (Phase.BACKWARD, 1, Scope.BACKWARD, 0)),
        (28, (Phase.OTHER, -1, Scope.NONE, 0)),
        (31, (Phase.OPTIMIZER, -1, Scope.OPTIMIZER, 0)),
        (36, (Phase.OTHER, -1, Scope.NONE, 1)),
        (10**18, (Phase.OTHER, -1, Scope.NONE, 1)),
        (-(10**18), (Phase.INIT, -1, Scope.NONE, 0)),
    ],
)
def test_what_a_step_does_when(time: int, expected: tuple[Phase, int, Scope, int]) -> None:
    assert at(segmented(STEP), time) == expected


def test_a_recomputed_forward_belongs_to_backward() -> None:
    found = segmented(
        [
            (10, "module_enter", 0),
            (11, "module_exit", 0, 1),
            (20, "backward_enter"),
            (22, "module_enter", 1),
            (24, "module_exit", 1, 1),
            (25, "backward_enter"),
            (27, "backward_exit"),
            (30, "backward_exit"),
        ]
    )

    assert at(found, 23) == (Phase.BACKWARD, 1, Scope.RECOMPUTE, 0)
    assert at(found, 26) == (Phase.BACKWARD, -1, Scope.BACKWARD, 0)
    assert at(found, 28) == (Phase.BACKWARD, -1, Scope.BACKWARD, 0)
    assert at(found, 31) == (Phase.OTHER, -1, Scope.NONE, 0)
    # What a nested run leaves is handed to the outermost one.
    place = found.at(np.array([26]))
    assert found.scope_end_ns[place].tolist() == [30]


def test_nothing_is_a_loss_after_an_evaluation() -> None:
    found = segmented([(10, "module_enter", 0), (12, "module_exit", 0, 0), (20, "backward_enter")])

    assert at(found, 15) == (Phase.OTHER, -1, Scope.NONE, 0)


def test_what_outlives_a_library_has_its_category() -> None:
    found = segmented([(10, "scope_enter", 9), (20, "scope_exit", 9)])
    lives = paired([(11, "alloc", A, 4), (12, "alloc", B, 2), (13, "free", B, 2)])

    result = attribute(lives, found, tags([]))

    assert [CATEGORIES[c] for c in result.category] == [
        Category.COMMUNICATION,
        Category.TEMPORARY,
    ]


def test_what_a_library_keeps_is_called_after_what_made_it() -> None:
    tables = replace(
        names({9: ("bucket", "communication"), 8: ("gather", "communication/communication")}),
        tensor={3: "gather", 4: "bucket"},
    )
    rows = [
        (10, "scope_enter", 9),
        (20, "scope_exit", 9),
        (30, "scope_enter", 8),
        (40, "scope_exit", 8),
    ]
    lives = paired(
        [
            (11, "alloc", A, 4),
            (12, "alloc", B, 2),
            (13, "free", B, 2),
            (31, "alloc", B, 2),
            (32, "free", B, 2),
        ]
    )

    result = attribute(lives, segment(marks(rows), tables), tags([]))

    assert [CATEGORIES[c] for c in result.category] == [
        Category.COMMUNICATION,
        Category.TEMPORARY,
        Category.COMMUNICATION,
    ]
    assert result.name.tolist() == [4, -1, 3]


@pytest.mark.parametrize(
    "rows",
    [
        [(10, "module_exit", 3, 1)],
        [(10, "backward_exit"), (11, "optimizer_exit", 0)],
        [(10, "scope_exit", 9)],
    ],
    ids=["module", "backward and optimizer", "library"],
)
def test_an_end_without_a_beginning_changes_no_scope(
    rows: Sequence[Mark],
) -> None:
    found = segmented(rows)

    assert at(found, 12)[2] is Scope.NONE
    assert set(found.scope.tolist()) == {0}


def test_an_end_closes_what_was_left_open_inside() -> None:
    """Module 1 was left by an exception that no hook saw."""
    found = segmented([(10, "module_enter", 0), (12, "module_enter", 1), (16, "module_exit", 0, 1)])

    assert at(found, 14) == (Phase.FORWARD, 1, Scope.MODULE, 0)
    assert at(found, 17)[2] in (Scope.NONE, Scope.LOSS)
    assert found.scope_end_ns[found.at(np.array([14]))].tolist() == [16]


def test_an_end_of_another_module_closes_nothing() -> None:
    found = segmented([(10, "module_enter", 0), (12, "module_exit", 5, 1)])

    assert at(found, 14) == (Phase.FORWARD, 0, Scope.MODULE, 0)


def test_the_end_of_a_step_closes_everything() -> None:
    """A forward that raised, then a step of another batch, which the job finished."""
    found = segmented(
        [
            (10, "module_enter", 0),
            (12, "module_enter", 1),
            (30, "optimizer_enter", 0),
            (31, "optimizer_exit", 0),
            (32, "step", -1, 1),
            (40, "module_enter", 0),
            (42, "module_exit", 0, 1),
        ]
    )

    assert at(found, 33) == (Phase.OTHER, -1, Scope.NONE, 1)
    assert at(found, 41) == (Phase.FORWARD, 0, Scope.MODULE, 1)


def test_a_scope_that_never_ends() -> None:
    found = segmented([(10, "module_enter", 0), (12, "backward_enter")])
    lives = paired([(11, "alloc", A, 4), (13, "alloc", B, 2), (14, "free", B, 2)])

    assert found.scope_end_ns[found.at(np.array([11, 13]))].tolist() == [FOREVER, FOREVER]
    result = attribute(lives, found, tags([]))
    assert len(result.category) == 2


# -- rules -------------------------------------------------------------------------------------


def category_of(
    rows: Sequence[tuple[int, str, int, int]],
    declared: Sequence[tuple[int, int, Category] | tuple[int, int, Category, int]] = (),
) -> list[Category]:
    """Categories of the lifetimes of some events during STEP."""
    result = attribute(paired(rows), segmented(STEP), tags(declared))
    return [CATEGORIES[category] for category in result.category]


@pytest.mark.parametrize(
    ("begin", "end", "category"),
    [
        (13, 14, Category.TEMPORARY),  # freed before the layer returned
        (13, 15, Category.ACTIVATION),  # handed to the model
        (13, 25, Category.ACTIVATION),  # saved for backward
        (15, 16, Category.TEMPORARY),  # made and freed in the model itself
        (17, 19, Category.TEMPORARY),  # a temporary of the loss
        (17, 25, Category.ACTIVATION),
        (21, 25, Category.TEMPORARY),
        (21, 26, Category.TEMPORARY),
        (21, 32, Category.GRADIENT),
        (31, 33, Category.OPTIMIZER_TEMPORARY),
        (31, None, Category.OPTIMIZER_STATE),
        (27, 29, Category.TEMPORARY),
        (5, 11, Category.INPUT),  # prepared for the forward, and used by it
        (5, 9, Category.TEMPORARY),
        (5, 10, Category.TEMPORARY),  # gone in the moment in which the forward begins
        (5, None, Category.INPUT),
    ],
)
def test_a_category_is_inferred_from_the_lifetime(
    begin: int, end: int | None, category: Category
) -> None:
    rows = [(begin, "alloc", A, 8)] + ([(end, "free", A, 8)] if end is not None else [])

    result = attribute(paired(rows), segmented(STEP), tags([]))

    assert CATEGORIES[result.category[0]] is category
    assert list(Certainty)[result.certainty[0]] is Certainty.INFERRED


def test_what_existed_before_is_unknown_unless_it_is_declared() -> None:
    rows = [(0, "census", A, 8), (0, "census", B, 8)]

    assert category_of(rows, [(1, B, Category.WEIGHT)]) == [Category.UNKNOWN, Category.WEIGHT]


def test_nobody_is_said_to_have_allocated_what_existed_before() -> None:
    lives = paired([(13, "census", A, 8), (13, "alloc", B, 8)], on_ns=[13])

    assert attribute(lives, segmented(STEP), tags([])).module.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("time", "hits"),
    [(9, False), (10, True), (15, True), (19, True), (20, False), (25, False)],
)
def test_a_tag_holds_from_its_allocation_until_its_free(time: int, hits: bool) -> None:
    lives = paired([(10, "alloc", A, 8), (20, "free", A, 8)])

    result = attribute(lives, segmented([]), tags([(time, A, Category.WEIGHT)]))

    assert (CATEGORIES[result.category[0]] is Category.WEIGHT) is hits
    assert (int(result.name[0]) == 0) is hits


def test_a_tag_speaks_of_one_lifetime_and_not_of_the_next_at_its_address() -> None:
    rows = [
        (21, "alloc", A, 8),
        (22, "free", A, 8),
        (23, "alloc", A, 8),
        (27, "free", A, 8),
        (31, "alloc", A, 8),
        (32, "free", A, 8),
    ]

    assert category_of(rows, [(24, A, Category.GRADIENT)]) == [
        Category.TEMPORARY,
        Category.GRADIENT,
        Category.OPTIMIZER_TEMPORARY,
    ]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (Category.WEIGHT, Category.MASTER_WEIGHT),
        (Category.WEIGHT, Category.INPUT),
        (Category.MASTER_WEIGHT, Category.OPTIMIZER_STATE),
        (Category.OPTIMIZER_STATE, Category.GRADIENT),
        (Category.COMMUNICATION, Category.INPUT),
    ],
)
def test_of_two_tags_the_stronger_holds_whichever_came_first(
    winner: Category, loser: Category, order: int
) -> None:
    declared = [(11, winner), (12, loser)][::order]
    rows = [(time, A, category) for time, (_, category) in zip((11, 12), declared, strict=True)]

    assert category_of([(10, "alloc", A, 8)], rows) == [winner]


@pytest.mark.parametrize("first", [Category.GRADIENT, Category.COMMUNICATION])
def test_a_gradient_that_fills_a_bucket_is_on_its_way_and_one_that_is_sent_stays_one(
    first: Category,
) -> None:
    (second,) = {Category.GRADIENT, Category.COMMUNICATION} - {first}
    rows = [(11, A, first), (12, A, second)]

    assert category_of([(10, "alloc", A, 8)], rows) == [first]


def test_of_two_equal_tags_the_first_gives_the_name() -> None:
    lives = paired([(10, "alloc", A, 8)])
    declared = tags([(12, A, Category.WEIGHT, 7), (11, A, Category.WEIGHT, 5)])

    assert attribute(lives, segmented([]), declared).name.tolist() == [5]


def test_a_model_s_output_stays_an_activation_when_it_is_another_one_s_input() -> None:
    rows = [(13, "alloc", A, 8), (25, "free", A, 8)]

    assert category_of(rows, [(18, A, Category.INPUT)]) == [Category.ACTIVATION]


def test_bytes_that_no_event_tells_of_are_uncovered() -> None:
    lives = paired([(10, "alloc", A, 8)])
    declared = tags([(11, A, Category.INPUT), (11, B, Category.INPUT), (12, B, Category.INPUT)])

    assert attribute(lives, segmented([]), declared).uncovered_bytes == 8


# -- whatever happens --------------------------------------------------------------------------

ADDRESSES = st.sampled_from([A, A + 64, A + 128, B])
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["alloc", "alloc", "free", "census", "census_free"]),
        ADDRESSES,
        st.integers(0, 1000),
    ),
    max_size=60,
)
MARKS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from([kind.value for kind in MarkKind]),
        st.integers(-1, 3),
        st.integers(0, 4),
    ),
    max_size=60,
)
TAGS = st.lists(st.tuples(st.integers(-1, 61), ADDRESSES, st.sampled_from(CATEGORIES)), max_size=30)
STRETCHES = st.lists(st.integers(1, 59), max_size=4, unique=True).map(sorted)


@settings(max_examples=300, deadline=None)
@given(EVENTS, MARKS, TAGS, STRETCHES)
def test_categories_always_sum_to_the_total_and_no_byte_counts_twice(
    rows: list[tuple[int, str, int, int]],
    job: list[tuple[int, str, int, int]],
    declared: list[tuple[int, int, Category]],
    bounds: list[int],
) -> None:
    # on, off, on, off, ...: beginning with the recording on.
    on_ns, off_ns = [0, *bounds[1::2]], bounds[0::2]
    lives = paired(rows, on_ns, off_ns)
    found = segment(marks(job), names({1: ("library", "communication"), 2: ("x", "no category")}))
    result = attribute(lives, found, tags(declared))

    totals, contents = brute_force(rows, on_ns)
    assert lives.running_bytes().tolist() == totals
    assert_partition(lives, result, totals)
    for index, alive in enumerate(contents):
        held = (lives.first <= index) & (lives.last > index)
        ours = sorted(zip(lives.first[held].tolist(), lives.size_bytes[held].tolist(), strict=True))
        assert ours == alive
        assert len(set(lives.address[held].tolist())) == len(alive)
    assert_well_formed(found)


def assert_partition(lives: Lifetimes, result: Attribution, totals: Sequence[int]) -> None:
    """Every lifetime has one category, and the categories' totals sum to the total."""
    assert len(result.category) == len(lives.first)
    parts: list[Array] = []
    for position in range(len(CATEGORIES)):
        part = lives.running_bytes(result.category == position)
        assert not len(part) or int(part.min()) >= 0
        parts.append(part)
    np.testing.assert_array_equal(np.sum(parts, axis=0), totals)


def assert_well_formed(found: Segments) -> None:
    """Segments lie in order, and none ends before it begins."""
    assert bool(np.all(np.diff(found.start_ns[1:]) >= 0))
    assert bool(np.all(found.scope_end_ns[1:] >= found.start_ns[1:]))
    columns = (found.phase, found.module, found.step, found.scope, found.survivor)
    assert {len(column) for column in columns} == {len(found.start_ns)}
    assert len(found.next_forward_ns) == len(found.start_ns)
