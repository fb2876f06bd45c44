"""When forwards, backwards and optimizer steps were, concluded from who allocated when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memlens.importing.evidence import Evidence

__all__ = ["FOREVER", "Run", "Stretches", "Timeline", "runs_of", "step_ends"]

FOREVER = 2**63 - 1

_RUNS = {
    Evidence.OPTIMIZER: Evidence.OPTIMIZER,
    Evidence.BACKWARD: Evidence.BACKWARD,
    Evidence.RECOMPUTE: Evidence.BACKWARD,
    Evidence.FORWARD: Evidence.FORWARD,
    Evidence.ZEROING: None,
    Evidence.JOB: None,
}
"""What goes on when a block is made; None: nothing of the three. Others say nothing of it."""


@dataclass(frozen=True)
class Run:
    """A stretch of time in which one thing was going on: FORWARD, BACKWARD or OPTIMIZER."""

    what: Evidence
    start_ns: int
    end_ns: int
    """When something else began; FOREVER: the history ends within it."""


class Stretches:
    """Stretches of time that are told by name, and do not overlap."""

    def __init__(self, stretches: Iterable[tuple[int, int]]) -> None:
        self.all: list[tuple[int, int]] = []
        for begin, end in sorted(stretches):
            if self.all and begin <= self.all[-1][1]:
                begin, end = self.all[-1][0], max(end, self.all.pop()[1])
            self.all.append((begin, end))
        self._begins = [begin for begin, _ in self.all]

    def __contains__(self, time_ns: int) -> bool:
        place = bisect_right(self._begins, time_ns) - 1
        return place >= 0 and time_ns <= self.all[place][1]


def runs_of(made: Iterable[tuple[int, Evidence]], steps: Stretches) -> list[Run]:
    """Put together what goes on without a break.

    Args:
        made: when blocks were made and who asked, in the order of time.
        steps: when optimizers are known to have stepped. What nobody else claims within is theirs;
            forwards and backwards within are those of a closure.
    """
    events: list[tuple[int, Evidence]] = []
    for time_ns, evidence in made:
        if evidence in _RUNS:
            is_theirs = _RUNS[evidence] is None and time_ns in steps
            events.append((time_ns, Evidence.OPTIMIZER if is_theirs else evidence))
    for begin, end in steps.all:
        events += [(begin, Evidence.OPTIMIZER), (end + 1, Evidence.JOB)]
    events.sort(key=lambda event: event[0])

    runs: list[Run] = []
    current: Evidence | None = None
    start_ns = 0
    for time_ns, evidence in events:
        what = _RUNS[evidence]
        if what is not current:
            if current is not None:
                runs.append(Run(current, start_ns, time_ns))
            current, start_ns = what, time_ns
    if current is not None:
        runs.append(Run(current, start_ns, FOREVER))
    return runs


def step_ends(runs: Sequence[Run], zeroed: Sequence[int]) -> list[int]:
    """When training steps ended: with the last optimizer after a backward.

    Args:
        runs: what went on when.
        zeroed: when gradients were given back by `zero_grad`; ends steps where no optimizer was seen,
            as one that takes no memory is not.
    """
    ends: list[int] = []
    is_due, is_last = True, False
    for run in runs:
        if run.what is Evidence.OPTIMIZER:
            if run.end_ns == FOREVER:
                break
            if is_due:
                ends.append(run.end_ns)
            elif is_last:  # another optimizer, of the same step
                ends[-1] = run.end_ns
            is_due, is_last = False, True
        else:
            is_last = False
            is_due = is_due or run.what is Evidence.BACKWARD
    if ends or any(run.what is Evidence.OPTIMIZER for run in runs):
        return ends
    backwards = [run.end_ns for run in runs if run.what is Evidence.BACKWARD]
    for time_ns in zeroed:
        count = bisect_right(backwards, time_ns)
        if count > 0:
            ends.append(time_ns)
            del backwards[:count]
    return ends


class Timeline:
    """What was going on at a moment."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._starts = [run.start_ns for run in runs]

    def at(self, time_ns: int) -> Run | None:
        """The run that a moment lies in."""
        place = bisect_right(self._starts, time_ns) - 1
        return self.runs[place] if place >= 0 and time_ns < self.runs[place].end_ns else None

    def after(self, time_ns: int) -> Run | None:
        """The next one to begin."""
        place = bisect_right(self._starts, time_ns)
        return self.runs[place] if place < len(self.runs) else None
