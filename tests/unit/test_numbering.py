"""Every process of a run gets a rank of its own."""

from __future__ import annotations

import pytest

from memlens.disk.numbering import number_ranks


@pytest.mark.parametrize(
    ("given", "world_size", "numbers"),
    [
        ([0], 1, [0]),
        ([1, 0], 2, [1, 0]),
        ([None], 1, [0]),
        ([None, None], 1, [0, 1]),
        ([None, 0, None, 2], 1, [1, 0, 3, 2]),  # unknown ones take what nobody claims
        ([0, 0, 0], 1, [0, 1, 2]),  # three scripts, one after the other
        ([0, 1, 0, 1], 2, [0, 1, 2, 3]),  # started again
        ([0, 0], 4, [0, 4]),  # not in the place of one that is missing
        ([7, 7], 2, [7, 2]),
    ],
)
def test_numbers(given: list[int | None], world_size: int, numbers: list[int]) -> None:
    assert number_ranks(given, world_size)[0] == numbers


def test_nothing_is_wrong_with_a_whole_run() -> None:
    assert number_ranks([3, 1, 0, 2], 4)[1] == []


def test_missing_ranks_are_named_up_to_a_few() -> None:
    assert number_ranks([1], 3)[1] == ["no capture of rank 0, 2"]
    assert number_ranks([0], 9)[1] == ["no capture of rank 1, 2, 3, 4, 5 and 3 more"]


def test_ranks_that_came_twice_are_named() -> None:
    assert number_ranks([0, 1, 1, 0], 2)[1] == [
        "several processes had the same rank; shown as rank 2, 3: those that began later"
    ]
