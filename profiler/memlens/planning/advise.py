"""What to change about a job so that it fits on a card: tried in simulation, the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from memlens.catalogue.gpus import Gpu
from memlens.catalogue.table import find
from memlens.comparing.results import Result
from memlens.errors import SimulationError
from memlens.planning.bounds import Bounds
from memlens.planning.changes import Axis, Change, Price, changes_for
from memlens.planning.simulated import largest_rank, verdict_on
from memlens.planning.sizes import JobWords
from memlens.planning.verdict import Verdict

__all__ = ["Advice", "Option", "Simulate", "advise"]

Simulate = Callable[[str, JobWords, str], Result]
"""Simulates a job, given a name for it, its words, and the variant of its optimizer (empty: its own)."""

WORTH_BYTES = 2**20
"""Less than this is not worth a change."""
WORTH_SHARE = 0.005
BY_HAND = "not simulated: the script has to be changed"
MOST_PAIRS = 8
"""Of two changes together, so many are simulated."""


@dataclass(frozen=True)
class Option:
    """The job with some changes: none, one, or several together."""

    changes: tuple[Change, ...]
    bound_bytes: int
    """By what the unchanged job allocates when, it needs this at least."""
    result: Result | None = None
    """None: it was not simulated by itself."""
    fits: bool | None = None
    """None: not known."""
    reserved_peak_bytes: int | None = None
    saving_bytes: int | None = None
    """Of what the unchanged job reserves."""
    reason: str = ""
    """Why nothing is known of it."""

    @property
    def name(self) -> str:
        """`adamw-r + checkpointing`."""
        return " + ".join(each.name for each in self.changes) or "none"

    @property
    def price(self) -> Price:
        """That of the most expensive change."""
        return max((each.cost.price for each in self.changes), default=Price.NOTHING)

    @property
    def by_hand(self) -> bool:
        """It is of use, but the script has to be changed for it."""
        return self.reason == BY_HAND

    def may_fit(self, gpu: Gpu) -> bool:
        """What is known does not speak against it."""
        return self.bound_bytes <= gpu.usable_bytes

    def to_json(self) -> dict[str, Any]:
        """For other programs; sizes are whole bytes."""
        peak = self.result and self.result.peak
        return {
            "changes": [
                {
                    "name": each.name,
                    "what": each.what,
                    "price": each.cost.price.name.lower(),
                    "cost": each.cost.text,
                    "source": each.cost.source,
                }
                for each in self.changes
            ],
            "fits": self.fits,
            "allocated_peak_bytes": peak and peak.allocated_bytes,
            "reserved_peak_bytes": self.reserved_peak_bytes,
            "saving_bytes": self.saving_bytes,
            "bound_bytes": self.bound_bytes,
            "reason": self.reason or None,
            "run": (self.result and self.result.run) or None,
            "reused": bool(self.result and self.result.reused),
        }


@dataclass(frozen=True)
class Advice:
    """All that was found out."""

    job: str
    gpu: Gpu
    verdict: Verdict
    """On the unchanged job."""
    options: tuple[Option, ...]
    """The first one is the job without changes; then the cheapest first."""

    @property
    def recommended(self) -> Option | None:
        """The cheapest that fits; None: nothing that was tried does."""
        fitting = [each for each in self.options if each.fits]
        return min(fitting, key=lambda each: (each.price, len(each.changes)), default=None)

    def to_json(self) -> dict[str, Any]:
        """What `memlens advise --json` prints."""
        best = self.recommended
        return {
            "job": self.job,
            "verdict": self.verdict.to_json(),
            "recommended": None if best is None else [each.name for each in best.changes],
            "options": [each.to_json() for each in self.options],
        }


def advise(
    job: JobWords, shown: str, gpu: Gpu, simulate: Simulate, *, everything: bool = False
) -> Advice:
    """Try changes, the cheapest first, until some that cost alike have one that fits.

    Args:
        job: what is to fit.
        shown: what to call it.
        gpu: the card.
        simulate: runs it.
        everything: try also what is not needed, or cannot be enough.

    Raises:
        SimulationError: the unchanged job cannot be simulated.
    """
    result = simulate("as it is", job, "")
    verdict = verdict_on(result, gpu)
    if verdict is None:
        raise SimulationError(f"the job failed in simulation: {result.reason} (see {result.run})")
    changes = changes_for(result.replaced, job.words, built_in=job.model is not None)
    return _Search(job, gpu, simulate, result, verdict, everything).advice(shown, changes)


@dataclass
class _Search:
    job: JobWords
    gpu: Gpu
    simulate: Simulate
    unchanged: Result
    verdict: Verdict
    everything: bool

    def __post_init__(self) -> None:
        self.bounds = Bounds(largest_rank(self.unchanged.run))
        first = Option((), self.bounds.least_bytes(()))
        self.options = [self._known(first, self.unchanged, self.verdict.fits)]
        self.joining: Change | None = None
        """Expandable segments, where they are not in use already."""

    def advice(self, shown: str, changes: Sequence[Change]) -> Advice:
        if self.bounds.expandable:
            changes = [each for each in changes if each.axis is not Axis.ALLOCATOR]
        self.joining = next((each for each in changes if each.axis is Axis.ALLOCATOR), None)
        if not self.verdict.fits or self.everything:
            for change in changes:
                self._single(change)
            if not any(each.fits for each in self.options):
                self._pairs(changes)
        return Advice(shown, self.gpu, self.verdict, tuple(self.options))

    def _single(self, change: Change) -> None:
        option = Option((change,), self.bounds.least_bytes((change,)))
        if change is self.joining:
            self.options.append(self._replayed(option, self.unchanged))
        elif reason := self._needless(option):
            self.options.append(replace(option, reason=reason))
        elif not change.simulated:
            self.options.append(replace(option, reason=BY_HAND))
        else:
            self._try(option)

    def _needless(self, option: Option) -> str:
        """Why not to simulate it; empty: there is no reason."""
        (change,) = option.changes
        peak_bytes = self.bounds.least_bytes(())
        if peak_bytes - option.bound_bytes < max(WORTH_BYTES, int(WORTH_SHARE * peak_bytes)):
            return "no use, as the peak is not made of what it takes away"
        if self.everything:
            return ""
        if any(each.fits and each.price < change.cost.price for each in self.options):
            return "not tried, as something cheaper is enough"
        if change.axis is Axis.BATCH and any(
            each.fits and each.changes[0].axis is Axis.BATCH
            for each in self.options
            if each.changes
        ):
            return "not tried, as fewer parts are enough"
        if option.bound_bytes > self.gpu.usable_bytes:
            return "not tried, as it cannot be enough by itself"
        return ""

    def _pairs(self, changes: Sequence[Change]) -> None:
        """Two together, the cheapest first, and of those that cost alike what can take away most."""
        pairs = [
            Option(pair, self.bounds.least_bytes(pair))
            for pair in combinations([each for each in changes if each.simulated], 2)
            if _go_together(*pair) and self.joining not in pair
        ]
        able = [each for each in pairs if each.bound_bytes <= self.gpu.usable_bytes]
        able.sort(
            key=lambda each: (
                each.price,
                sum(change.cost.price for change in each.changes),
                each.bound_bytes,
            )
        )
        tried = 0
        failed: set[str] = set()
        for option in able:
            names = {each.name for each in option.changes}
            if tried == MOST_PAIRS or names & failed:
                continue
            tried += 1
            self._try(option)
            last = self.options[-1]
            if last.fits:
                return
            if last.fits is None:
                # Which of the two it is shows when one fails again; until then, both are left alone.
                failed |= names

    def _try(self, option: Option) -> None:
        """Simulate it; if it does not fit, the same requests may with segments that expand."""
        words, variant = _told(self.job, option.changes)
        result = self.simulate(option.name, words, variant)
        verdict = verdict_on(result, self.gpu)
        if verdict is None:
            self.options.append(replace(option, result=result, reason=f"failed: {result.reason}"))
            return
        self.options.append(self._known(option, result, verdict.fits))
        if not verdict.fits and self.joining is not None:
            joined = replace(option, changes=(*option.changes, self.joining))
            joined = self._replayed(joined, result)
            if joined.fits:
                self.options.append(joined)

    def _replayed(self, option: Option, result: Result) -> Option:
        peak = result.peak
        if peak is not None and peak.allocated_bytes > self.gpu.usable_bytes and option.changes[1:]:
            return replace(option, result=result, fits=False)
        bounds = self.bounds if result is self.unchanged else Bounds(largest_rank(result.run))
        fits, reserved_bytes = bounds.with_expandable_segments(self.gpu.usable_bytes)
        known = replace(result, reserved_peak_bytes=reserved_bytes)
        return self._known(option, known, fits)

    def _known(self, option: Option, result: Result, fits: bool) -> Option:
        reserved, before = result.reserved_peak_bytes, self.unchanged.reserved_peak_bytes
        return replace(
            option,
            result=result,
            fits=fits,
            reserved_peak_bytes=reserved,
            saving_bytes=None if reserved is None or before is None else before - reserved,
        )


def _go_together(one: Change, other: Change) -> bool:
    axes = {one.axis, other.axis}
    if len(axes) == 1 or axes == {Axis.GRADIENTS, Axis.BATCH}:  # each gradient is used up at once
        return False
    if Axis.GRADIENTS in axes:
        row = next((each.optimizer for each in (one, other) if each.axis is Axis.OPTIMIZER), "")
        return not row or find(row).in_backward
    return True


def _told(job: JobWords, changes: Iterable[Change]) -> tuple[JobWords, str]:
    """The words of the job with changes, and the variant of its optimizer."""
    changes = tuple(changes)
    words = (*job.words, *(word for each in changes for word in each.words))
    rows = {each.axis: each.optimizer for each in changes if each.optimizer}
    row = rows.get(Axis.OPTIMIZER) or rows.get(Axis.GRADIENTS, "")
    return replace(job, words=words), row + "+no-retain-grad" * (Axis.GRADIENTS in rows)
