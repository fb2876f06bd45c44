"""Where and when the trials of a comparison run: one after the other here, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from memlens.comparing.results import Result
from memlens.comparing.tries import Runner, Tell, Trial

__all__ = ["Here", "InTurn", "Machines", "Schedule", "Work", "side_by_side"]

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Work:
    """A trial that has to be run."""

    trial: Trial
    place: Path
    """Its folder, new and empty."""


class Schedule(Protocol):
    """Runs trials."""

    def run(
        self, work: Iterable[Work], runner: Runner, tell: Tell
    ) -> Iterator[tuple[Work, Result]]:
        """Run what comes, and give each result as soon as it is there, in whatever order.

        Args:
            work: taken one by one, when there is room for another: what one trial shows may make
                others needless.
            runner: how to run each.
            tell: called with the last line of a job's output, every now and then.
        """


class InTurn:
    """One after the other in this process's machine: two at once would take from each other."""

    def run(
        self, work: Iterable[Work], runner: Runner, tell: Tell
    ) -> Iterator[tuple[Work, Result]]:
        """See `Schedule`."""
        for each in work:
            yield each, runner.run(each.trial, each.place, tell)


class Machines(Protocol):
    """Where searches run, of which each knows its next trial only when the last one is done."""

    count: int
    """How many trials run at a time."""

    def place(self, runner: Runner) -> Runner:
        """A runner that runs its trials there; it may be called from several threads."""


class Here:
    """This machine: one trial at a time."""

    count = 1

    def place(self, runner: Runner) -> Runner:
        """See `Machines`."""
        return runner


def side_by_side(machines: Machines, search: Callable[[_T], _R], asked: Sequence[_T]) -> list[_R]:
    """Carry out searches, as many at a time as machines can take.

    Args:
        machines: where their trials run.
        search: carries out one.
        asked: what each is for.

    Returns:
        What they found, in that order.
    """
    if machines.count == 1:
        # In this thread: an interruption reaches the job.
        return [search(each) for each in asked]
    pool = ThreadPoolExecutor(machines.count)
    try:
        return list(pool.map(search, asked))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
