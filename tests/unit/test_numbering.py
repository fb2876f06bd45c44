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


def launches(*claims: Claim) -> tuple[int, ...]:
    return number_ranks(claims).launches


def test_a_launcher_says_which_start_it_is() -> None:
    first = [Claim(rank, 2, "job", 0) for rank in range(2)]
    again = [Claim(rank, 2, "job", 1) for rank in range(2)]
    assert launches(*first, *again) == (0, 0, 1, 1)
    assert launches(first[0], *again) == (0, 1, 1)  # one was gone before it recorded
    assert launches(*first, *[Claim(rank, 2, "other", 0) for rank in range(2)]) == (0, 0, 1, 1)


def test_the_launcher_of_another_host_may_not_have_counted() -> None:
    first = [Claim(rank, 2, "job", 0) for rank in range(2)]
    assert launches(*first, Claim(0, 2, "job", 1), Claim(1, 2, "job", 0)) == (0, 0, 1, 1)


def test_what_ended_before_is_another_start() -> None:
    old = [Claim(rank, 2, started_ns=rank, ended_ns=10) for rank in range(2)]
    new = [Claim(rank, 4, started_ns=20) for rank in (2, 3, 0, 1)]
    assert launches(*old, *new) == (0, 0, 1, 1, 1, 1)
    found = number_ranks([*old, *new])
    assert (found.world_size, found.missing, found.agree) == (4, 0, True)


def test_a_job_may_grow_or_shrink_when_it_is_started_again() -> None:
    old = [Claim(rank, 3, "job", 0) for rank in range(3)]
    new = [Claim(rank, 2, "job", 1) for rank in range(2)]
    found = number_ranks([*old, *new])
    assert (found.numbers, found.world_size, found.missing) == ((0, 1, 2, 3, 4), 2, 0)
    assert found.problems == (
        "the job was started 2 times; shown as rank 3, 4: the processes of the last start",
    )


def test_processes_that_disagree() -> None:
    found = number_ranks([Claim(0, 2), Claim(1, 3)])
    assert (found.world_size, found.missing, found.agree) == (3, 1, False)
    assert found.problems == (
        "no capture of rank 2",
        "processes disagree on how many ranks there are: rank 0 of 2; rank 1 of 3",
    )
