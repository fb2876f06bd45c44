"""Gives each process of a run a rank of its own."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["number_ranks"]

_NAMED = 5


def number_ranks(given: Sequence[int | None], world_size: int) -> tuple[list[int], list[str]]:
    """Number the processes of a run.

    Processes that do not know their rank get the smallest numbers that nobody claims. Of those that
    claim the same rank (a job that was started again, several scripts in one run), the first keeps
    it, and the others are numbered after all ranks.

    Args:
        given: which rank each process took itself for, in the order in which they began.
        world_size: how many ranks there should be.

    Returns:
        The numbers, and what is wrong with the ranks, one sentence each.
    """
    taken = {rank for rank in given if rank is not None}
    claimed: set[int] = set()
    numbers: list[int] = []
    again: list[int] = []
    for rank in given:
        if rank is None or rank in claimed:
            number = 0 if rank is None else world_size
            while number in taken:
                number += 1
            if rank is not None:
                again.append(number)
        else:
            number = rank
        taken.add(number)
        claimed.add(number)
        numbers.append(number)
    problems = []
    if again:
        problems.append(
            f"several processes had the same rank; shown as rank {_list(again, len(again))}: "
            "those that began later"
        )
    missing_count = world_size - sum(number < world_size for number in claimed)
    if missing_count:
        # Not a list of all: there may be thousands, or a damaged file may say so.
        missing = []
        for number in range(world_size):
            if number not in claimed:
                missing.append(number)
            if len(missing) == _NAMED:
                break
        problems.append(f"no capture of rank {_list(missing, missing_count)}")
    return numbers, problems


def _list(numbers: list[int], count: int) -> str:
    shown = ", ".join(map(str, numbers[:_NAMED]))
    return shown if count <= _NAMED else f"{shown} and {count - _NAMED} more"
