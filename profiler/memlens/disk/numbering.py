"""Gives each process of a run a rank of its own, and tells launches of one job apart.

A launcher may start a job again after a failure, and somebody may start it again by hand into the same
folder. Ranks of different launches were never there at the same time, so nothing is summed over them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Claim", "Numbered", "number_ranks"]

_NAMED = 5


@dataclass(frozen=True)
class Claim:
    """What a process said of itself."""

    rank: int | None
    """None: it did not know."""
    world_size: int = 1
    launch: str | None = None
    """The launcher's name for this start of the job; None: it gave none."""
    restart: int = 0
    """How often that launcher had started the processes again by then."""


@dataclass(frozen=True)
class Numbered:
    """The processes of a run, in the order in which they were given."""

    numbers: tuple[int, ...]
    """A rank for each, none twice."""
    launches: tuple[int, ...]
    """Which launch each belongs to, from 0 on."""
    world_size: int
    """Of the last launch."""
    missing: int
    """How many ranks of the last launch have no folder."""
    agree: bool
    """Its processes say the same of how many ranks there are."""
    problems: tuple[str, ...]
    """What is wrong, one sentence each."""


def number_ranks(claims: Sequence[Claim], unreadable: Collection[int] = ()) -> Numbered:
    """Number the processes of a run.

    Processes that do not know their rank get the smallest numbers that nobody claims. Of those that
    claim the same rank (a job that was started again, several scripts in one run), the first keeps
    it, and the others are numbered after all ranks.

    Args:
        claims: of each process, in the order in which they began.
        unreadable: ranks that have a folder which can not be read, so that they are not missing.
    """
    launches = _launches(claims)
    last = max(launches)
    sizes = [
        max(claim.world_size for claim, launch in zip(claims, launches, strict=True) if launch == n)
        for n in range(last + 1)
    ]
    taken = {claim.rank for claim in claims if claim.rank is not None}
    claimed: set[int] = set()
    numbers: list[int] = []
    again: list[int] = []
    for claim in claims:
        number = claim.rank
        if number is None or number in claimed:
            number = 0 if claim.rank is None else max(sizes)
            while number in taken:
                number += 1
            if claim.rank is not None:
                again.append(number)
        taken.add(number)
        claimed.add(number)
        numbers.append(number)
    problems = []
    if again:
        problems.append(_again(claims, numbers, launches, again))
    missing, agree = 0, True
    for launch, world_size in enumerate(sizes):
        mine = [position for position, each in enumerate(launches) if each == launch]
        of_launch = "" if last == 0 else f" in launch {launch + 1}"
        there = {
            numbers[position] if claims[position].rank is None else claims[position].rank
            for position in mine
        }
        there |= set(unreadable)
        missing = world_size - sum(rank is not None and rank < world_size for rank in there)
        if missing:
            # Not a list of all: there may be thousands, or a damaged file may say so.
            named: list[int] = []
            for number in range(world_size):
                if number not in there:
                    named.append(number)
                if len(named) == _NAMED:
                    break
            problems.append(f"no capture of rank {_list(named, missing)}{of_launch}")
        agree = len({claims[position].world_size for position in mine}) == 1
        if not agree:
            problems.append(_disagreement([(numbers[n], claims[n]) for n in mine], of_launch))
    return Numbered(tuple(numbers), tuple(launches), sizes[-1], missing, agree, tuple(problems))


def _launches(claims: Sequence[Claim]) -> list[int]:
    """Which launch each process belongs to.

    The launchers of several hosts count restarts each for itself, and a host whose own processes did
    not fail does not count at all; there, the second process of a rank tells.
    """
    seen: Counter[tuple[str | None, int | None]] = Counter()
    within = []
    for claim in claims:
        key = (claim.launch, claim.rank)
        within.append(0 if claim.rank is None else max(claim.restart, seen[key]))
        seen[key] += claim.rank is not None
    order = dict.fromkeys(
        (claim.launch, number)
        for claim, number in sorted(
            zip(claims, within, strict=True),
            key=lambda item: (_first(claims, item[0].launch), item[1]),
        )
    )
    places = {key: place for place, key in enumerate(order)}
    return [places[claim.launch, number] for claim, number in zip(claims, within, strict=True)]


def _first(claims: Sequence[Claim], launch: str | None) -> int:
    return next(place for place, claim in enumerate(claims) if claim.launch == launch)


def _again(
    claims: Sequence[Claim], numbers: Sequence[int], launches: Sequence[int], again: list[int]
) -> str:
    named = _list(again, len(again))
    of = {launches[numbers.index(number)] for number in again}
    if all(claims[numbers.index(number)].launch is not None for number in again):
        count = max(launches) + 1
        return f"the job was started {count} times; shown as rank {named}: the processes of " + (
            "the last start" if of == {count - 1} else "later starts"
        )
    return f"several processes had the same rank; shown as rank {named}: those that began later"


def _disagreement(mine: Sequence[tuple[int, Claim]], of_launch: str) -> str:
    said: dict[int, list[int]] = {}
    for number, claim in mine:
        said.setdefault(claim.world_size, []).append(number)
    parts = [
        f"rank {_list(sorted(numbers)[:_NAMED], len(numbers))} of {size:,}"
        for size, numbers in sorted(said.items())[:_NAMED]
    ]
    return f"processes{of_launch} disagree on how many ranks there are: {'; '.join(parts)}"


def _list(numbers: list[int], count: int) -> str:
    shown = ", ".join(map(str, numbers[:_NAMED]))
    return shown if count <= _NAMED else f"{shown} and {count - _NAMED} more"
