"""Every process of a run gets a rank of its own."""

from __future__ import annotations

import pytest

from memlens.disk.numbering import Claim, Numbered, number_ranks


def numbered(given: list[int | None], world_size: int) -> Numbered:
    return number_ranks([Claim(rank, world_size) for rank in given])


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
    assert numbered(given, world_size).numbers == tuple(numbers)


def test_nothing_is_wrong_with_a_whole_run() -> None:
    assert numbered([3, 1, 0, 2], 4).problems == ()


def test_missing_ranks_are_named_up_to_a_few() -> None:
    assert numbered([1], 3).problems == ("no capture of rank 0, 2",)
    assert numbered([0], 9).problems == ("no capture of rank 1, 2, 3, 4, 5 and 3 more",)


def test_ranks_that_came_twice_are_named() -> None:
    assert numbered([0, 1, 1, 0], 2).problems == (
        "several processes had the same rank; shown as rank 2, 3: those that began later",
    )
