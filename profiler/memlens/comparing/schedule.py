"""Where and when the trials of a comparison run: one after the other here, or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from memlens.comparing.results import Result
from memlens.comparing.tries import Runner, Tell, Trial

__all__ = ["InTurn", "Schedule", "Work"]


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
