"""What a report says about one rank, asked of the capture once and shown by every renderer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memlens.errors import UsageError
from memlens.events import Category, Certainty, Phase, WeightKind
from memlens.report.text import count, named_ranks
from memlens.units import format_bytes, format_duration_ns

if TYPE_CHECKING:
    from memlens.answers import (
        Allocation,
        Coverage,
        Growth,
        ModuleUsage,
        Peak,
        RunInfo,
        Slack,
        Step,
        Timeline,
    )
    from memlens.capture import Capture, RankCapture, Unreadable

__all__ = [
    "Covered",
    "Moment",
    "RankView",
    "ReportOptions",
    "choose_ranks",
    "command_line",
    "view_rank",
    "warnings_of",
]

TIMELINE_POINTS = 8192
"""Fine enough that a column of the widest terminal or picture still sees several."""


@dataclass(frozen=True)
class ReportOptions:
    """What the reader asked for."""

    rollup: bool = False
    """The five published names instead of the categories."""
    rank: int | None = None
    """Only this rank; None: all."""
    step: int | None = None
    """Look at the peak of this step; None: at the peak of the run."""
    top: int = 10
    """How many modules, allocations and growth suspects."""


@dataclass(frozen=True)
class Moment:
    """The moment that the tables describe."""

    time_ns: int
    elapsed_ns: int
    """Since the first event of the rank."""
    step: int
    phase: Phase | None
    """None: not known, as the moment is the peak of a step that was asked for."""
    module: str
    """Empty: outside of modules, or not known (see `phase`)."""
    allocated_bytes: int
    categories: Mapping[Category, int]


@dataclass(frozen=True)
class RankView:
    """One rank's answers at one moment."""

    rank: RankCapture
    peak: Peak
    steps: tuple[Step, ...]
    timeline: Timeline
    start_ns: int
    """Time of the rank's first event."""
    moment: Moment
    modules: tuple[ModuleUsage, ...]
    """All that hold anything at the moment, the largest first."""
    allocations: tuple[Allocation, ...]
    """All that are alive at the moment, the largest first."""
    growth: tuple[Growth, ...]
    inferred_bytes: Mapping[Category, int]
    """Bytes at the moment whose category was concluded, not declared by an object we know."""
    weight_kinds: Mapping[WeightKind, int]
    """Bytes of weights at the moment, by kind; they sum to the category weight."""
    peak_weight_kinds: Mapping[WeightKind, int]
    """The same at the peak of the run."""
    slack: Slack | None
    """What the allocator holds beyond the blocks at the moment; None: it takes nothing in advance."""

    @property
    def at_peak(self) -> bool:
        """Whether the moment is the peak of the run, and not of a step that was asked for."""
        return self.moment.phase is not None


def choose_ranks(capture: Capture, number: int | None) -> tuple[RankCapture, ...]:
    """The ranks asked for, each once per device.

    Raises:
        UsageError: the run has no rank, or not this one.
    """
    if not capture.ranks:
        raise UsageError(f"{capture.info.path} holds no rank: the job ended before it recorded")
    if number is None:
        return capture.ranks
    chosen = tuple(rank for rank in capture.ranks if rank.rank == number)
    if not chosen:
        known = sorted({rank.rank for rank in capture.ranks})
        there = f"rank {known[0]}" if len(known) == 1 else f"ranks {known[0]} to {known[-1]}"
        raise UsageError(f"there is no rank {number} in {capture.info.path}; it holds {there}")
    return chosen


def view_rank(rank: RankCapture, options: ReportOptions) -> RankView:
    """Ask a rank everything that a report shows.

    Raises:
        UsageError: the step asked for was not recorded.
    """
    peak = rank.peak()
    steps = rank.steps()
    timeline = rank.timeline(max_points=TIMELINE_POINTS)
    start_ns = int(timeline.time_ns[0]) if len(timeline.time_ns) else peak.time_ns
    moment, at_ns = _moment(peak, steps, options.step, start_ns)
    alive = rank.allocations_at(at_ns, top=None)
    inferred: dict[Category, int] = dict.fromkeys(Category, 0)
    for block in alive:
        if block.certainty is Certainty.INFERRED:
            inferred[block.category] += block.size_bytes
    return RankView(
        rank=rank,
        peak=peak,
        steps=steps,
        timeline=timeline,
        start_ns=start_ns,
        moment=moment,
        modules=rank.modules_at(at_ns, top=None),
        allocations=alive,
        growth=rank.growth(options.top),
        inferred_bytes=inferred,
        weight_kinds=rank.weights_at(at_ns),
        peak_weight_kinds=rank.weights_at(),
        slack=rank.slack_at(at_ns),
    )


def _moment(
    peak: Peak, steps: tuple[Step, ...], number: int | None, start_ns: int
) -> tuple[Moment, int | None]:
    """The moment to describe, and how to ask the capture for it.

    Several events can carry one timestamp, so the peak is asked for as None ("at the peak"), which
    names one event, and not by its time.
    """
    if number is None or (number == peak.step and _same_moment(peak, steps, number)):
        return Moment(
            time_ns=peak.time_ns,
            elapsed_ns=peak.time_ns - start_ns,
            step=peak.step,
            phase=peak.phase,
            module=peak.module,
            allocated_bytes=peak.allocated_bytes,
            categories=peak.categories,
        ), None
    for step in steps:
        if step.step == number:
            return Moment(
                time_ns=step.peak_ns,
                elapsed_ns=step.peak_ns - start_ns,
                step=number,
                phase=None,
                module="",
                allocated_bytes=step.peak_bytes,
                categories=step.categories,
            ), step.peak_ns
    there = f"steps {steps[0].step} to {steps[-1].step}" if steps else "no complete step"
    raise UsageError(f"step {number} was not recorded; the capture holds {there}")


def _same_moment(peak: Peak, steps: tuple[Step, ...], number: int) -> bool:
    return any(step.step == number and step.peak_ns == peak.time_ns for step in steps)


class Covered(Protocol):
    """A rank, or what is known of one."""

    @property
    def rank(self) -> int:
        """Its number."""

    @property
    def coverage(self) -> Coverage:
        """How complete its capture is."""


def warnings_of(
    capture: Capture, ranks: Sequence[Covered], unreadable: Sequence[Unreadable] = ()
) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers, one sentence each, without repeats."""
    found = [*capture.problems]
    for each in unreadable:
        whose = "one of the processes" if each.rank is None else f"rank {each.rank}"
        found.append(f"{whose} is left out: {each.problem}")
    said: dict[str, list[int]] = {}
    for rank in ranks:
        for sentence in _coverage_warnings(rank.coverage):
            said.setdefault(sentence, []).append(rank.rank)
    for sentence, numbers in said.items():
        found.append(f"{named_ranks(numbers)}: {sentence}" if len(ranks) > 1 else sentence)
    return tuple(dict.fromkeys(found))


def _coverage_warnings(coverage: Coverage) -> list[str]:
    found = []
    if coverage.lost_events:
        found.append(f"{count(coverage.lost_events, 'event')} lost: the numbers are partial")
    if coverage.blind_ns:
        found.append(
            f"nothing was recorded for {format_duration_ns(coverage.blind_ns)}: "
            "another profiler had the allocator's reports"
        )
    if coverage.uncovered_bytes:
        found.append(
            f"up to {format_bytes(coverage.uncovered_bytes)} in tensors outside the allocator "
            "(shared, mapped or borrowed memory) is not in these numbers"
        )
    if coverage.witness_difference_bytes:
        found.append(
            f"our total and the allocator's own differ by up to "
            f"{format_bytes(coverage.witness_difference_bytes)}"
        )
    found += coverage.problems
    if not found and not coverage.complete:
        found.append("the capture is not complete: the job was killed or is still running")
    return [*found, *coverage.notes]


def command_line(info: RunInfo) -> str:
    """The job's command line as one would type it; says so when there is none."""
    return shlex.join(info.command) if info.command else "(no command line is known)"
