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
    started_ns: int = 0
    ended_ns: int | None = None
    """None: not known."""


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
        of_launch = "" if last == 0 else f" in start {launch + 1} of {last + 1}"
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
    """Which launch each process belongs to."""
    places: dict[tuple[str | None, int], int] = {}
    launches = []
    by_hand = _ByHand()
    seen: Counter[tuple[str, int]] = Counter()
    for claim in claims:
        key: tuple[str | None, int]
        if claim.launch is None:
            key = None, by_hand.next(claim)
        elif claim.rank is None:
            key = claim.launch, claim.restart
        else:
            # The launchers of several hosts count restarts each for itself, and one whose own
            # processes did not fail does not count at all; there, the second of a rank tells.
            key = claim.launch, max(claim.restart, seen[claim.launch, claim.rank])
            seen[claim.launch, claim.rank] += 1
        launches.append(places.setdefault(key, len(places)))
    return launches


class _ByHand:
    """Counts launches of which no launcher tells: one ends before the next begins.

    What was killed does not say when it ended; but no rank is there twice in one launch.
    """

    def __init__(self) -> None:
        self._number = 0
        self._ranks: set[int] = set()
        self._ends_ns: list[int | None] = []

    def next(self, claim: Claim) -> int:
        """The launch of the process that began next."""
        is_over = bool(self._ends_ns) and all(
            end is not None and end < claim.started_ns for end in self._ends_ns
        )
        if is_over or claim.rank in self._ranks:
            self._number += 1
            self._ranks, self._ends_ns = set(), []
        if claim.rank is not None:
            self._ranks.add(claim.rank)
        self._ends_ns.append(claim.ended_ns)
        return self._number


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
