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
    Evidence.STEP_IN_BACKWARD: Evidence.BACKWARD,
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
        return self.end_of(time_ns) is not None

    def end_of(self, time_ns: int) -> int | None:
        """When the stretch ends that a moment lies in; None: it lies in none."""
        place = bisect_right(self._begins, time_ns) - 1
        return self.all[place][1] if place >= 0 and time_ns <= self.all[place][1] else None


def runs_of(made: Iterable[tuple[int, Evidence]], steps: Stretches) -> list[Run]:
    """Put together what goes on without a break.

    Args:
        made: when blocks were made and who asked, in the order of time.
        steps: when optimizers are known to have stepped. What has no stack is theirs then. Forwards and
            backwards within are those of a closure.
    """
    events: list[tuple[int, Evidence]] = []
    for time_ns, evidence in made:
        if evidence in _RUNS:
            events.append((time_ns, evidence))
        elif evidence is Evidence.NOTHING and time_ns in steps:
            events.append((time_ns, Evidence.OPTIMIZER))
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


def step_ends(runs: Sequence[Run], steps: Stretches, zeroed: Sequence[int]) -> list[int]:
    """When training steps ended: with the last optimizer after a backward.

    Args:
        runs: what went on when.
        steps: when optimizers are known to have stepped; if none is, it is where they allocated.
        zeroed: when gradients were given back by `zero_grad`, in order; ends steps where no optimizer
            was seen, as one that takes no memory is not.
    """
    stepped = [end for _, end in steps.all] or [
        run.end_ns for run in runs if run.what is Evidence.OPTIMIZER
    ]
    backwards = [run.start_ns for run in runs if run.what is Evidence.BACKWARD]
    ends: list[int] = []
    seen = -1
    for end in stepped or zeroed:
        count = bisect_right(backwards, end)
        if end == FOREVER:
            break
        if stepped and count == seen:  # another optimizer, of the same step
            ends[-1] = end
        elif count > max(seen, 0) or (stepped and seen < 0):
            ends.append(end)
            seen = count
    return ends


class Timeline:
    """What was going on at a moment."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._starts = [run.start_ns for run in runs]
        self._first = {run.what: run for run in reversed(runs)}

    def at(self, time_ns: int) -> Run | None:
        """The run that a moment lies in."""
        place = bisect_right(self._starts, time_ns) - 1
        return self.runs[place] if place >= 0 and time_ns < self.runs[place].end_ns else None

    def after(self, time_ns: int) -> Run | None:
        """The next one to begin."""
        place = bisect_right(self._starts, time_ns)
        return self.runs[place] if place < len(self.runs) else None

    def first(self, what: Evidence) -> Run | None:
        """The first run of a kind."""
        return self._first.get(what)

    def is_repeated(self, run: Run) -> bool:
        """Whether there is a later run of the same kind."""
        return any(each.what is run.what and each.start_ns > run.start_ns for each in self.runs)
