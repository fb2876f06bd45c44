"""What a comparison found: frozen records, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from memlens.events import Category

if TYPE_CHECKING:
    from memlens.planning.verdict import Verdict

__all__ = ["Comparison", "Difference", "PeakResult", "RankResult", "Result", "Status"]

Json = dict[str, Any]


class Status(str, Enum):
    """How a variant ended."""

    OK = "ok"
    FAILED = "failed"
    """It ran and did not come to its end."""
    REFUSED = "refused"
    """It cannot run with this job, on this machine, or with what is installed."""


@dataclass(frozen=True)
class PeakResult:
    """The highest peak of a variant's run, over its ranks: as `peak` of `memlens report --json`."""

    time_ns: int
    step: int
    phase: str
    module: str
    allocated_bytes: int
    reserved_bytes: int | None
    categories: Mapping[Category, int]
    """Every category; sums to `allocated_bytes`."""


@dataclass(frozen=True)
class RankResult:
    """One rank of a variant's run."""

    rank: int
    peak: PeakResult
    reserved_peak_bytes: int | None = None


@dataclass(frozen=True)
class Result:
    """One variant."""

    name: str
    """The catalogue's name with its options, `as-is`, or the name of a callable."""
    status: Status
    reason: str = ""
    """One line: why it failed or was refused; empty when it is ok."""
    peak: PeakResult | None = None
    reserved_peak_bytes: int | None = None
    """Most that the allocator of a rank took from its device; None: it takes nothing in advance."""
    step_time_ns: int | None = None
    """Median time of a training step, without the first ones, recorded by memlens all the while."""
    final_loss: float | None = None
    """What the last backward began from; None when it was not a single number."""
    losses: tuple[float, ...] = ()
    """The same for every backward."""
    steps: int = 0
    run: str = ""
    """Folder of its capture, for `memlens report` and `memlens diff`; empty: there is none."""
    replaced: tuple[str, ...] = ()
    """Classes of the optimizers that the job constructed, each once."""
    notes: tuple[str, ...] = ()
    """What to know when reading its figures (state left unquantised, and the like)."""
    reused: bool = False
    """It was found from an earlier call."""
    optimizer: str = ""
    """Which optimizer that is, where the name says more; empty: the name says it."""
    sharding: str = ""
    """How its ranks share the training state (`zero2`, `fsdp`); empty: as the job has it."""
    ranks: tuple[RankResult, ...] = ()
    """Of every rank, its own peak; the highest of them is `peak`."""
    is_hopeless: bool = False
    """What it was refused for is the job's, so that the same awaits all others of this sharding."""

    @property
    def worst_rank(self) -> int | None:
        """The rank whose peak is the highest; None: there is no peak."""
        if not self.ranks:
            return None
        return max(self.ranks, key=lambda each: each.peak.allocated_bytes).rank


@dataclass(frozen=True)
class Difference:
    """A variant against the baseline."""

    peak_bytes: int
    peak_percent: float
    """Of the baseline's peak; negative: less memory."""
    step_time_ratio: float | None
    """Its step time over the baseline's."""
    final_loss: float | None
    """Its final loss less the baseline's."""


@dataclass(frozen=True)
class Comparison:
    """All variants of one job, in the order in which they were asked for."""

    job: str
    """Its command line, or what else to call it."""
    baseline: str
    """Name of the variant that the others are measured against."""
    results: tuple[Result, ...]
    folder: str = ""
    """Where captures and results are."""
    torch_version: str = ""
    device: str = "cpu"
    """What it ran on, or what was simulated."""
    simulated: bool = False
    """Nothing was trained: there are no times and no losses."""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """What a card makes of a variant, by its name; empty: there is no such card."""

    def result(self, name: str) -> Result:
        """The result of a variant.

        Raises:
            KeyError: it was not asked for.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def difference(self, result: Result) -> Difference | None:
        """A variant against the baseline; None where one of the two has no peak (or one of 0 B)."""
        base = self.result(self.baseline)
        if base.peak is None or result.peak is None or not base.peak.allocated_bytes:
            return None
        change = result.peak.allocated_bytes - base.peak.allocated_bytes
        times, losses = (
            (base.step_time_ns, result.step_time_ns),
            (base.final_loss, result.final_loss),
        )
        return Difference(
            peak_bytes=change,
            peak_percent=100 * change / base.peak.allocated_bytes,
            step_time_ratio=times[1] / times[0] if times[0] and times[1] is not None else None,
            final_loss=losses[1] - losses[0] if None not in losses else None,  # type: ignore[operator]
        )

    def to_json(self) -> Json:
        """One object for other programs; keys are only ever added. Sizes are whole bytes."""
        return {
            "job": self.job,
            "baseline": self.baseline,
            "folder": self.folder,
            "torch_version": self.torch_version,
            "device": self.device,
            "simulated": self.simulated,
            "variants": [self._variant(result) for result in self.results],
        }

    def _variant(self, result: Result) -> Json:
        difference = self.difference(result)
        verdict = self.verdicts.get(result.name)
        peak = result.peak
        return {
            "name": result.name,
            "status": result.status.value,
            "reason": result.reason or None,
            "peak": peak and _peak(peak),
            "peak_difference_bytes": difference and difference.peak_bytes,
            "peak_difference_percent": difference and difference.peak_percent,
            "step_time_ns": result.step_time_ns,
            "step_time_ratio": difference and difference.step_time_ratio,
            "final_loss": _finite(result.final_loss),
            "losses": [_finite(loss) for loss in result.losses],
            "final_loss_difference": _finite(difference.final_loss if difference else None),
            "steps": result.steps,
            "run": result.run or None,
            "replaced": list(result.replaced),
            "notes": list(result.notes),
            "reused": result.reused,
            "reserved_peak_bytes": result.reserved_peak_bytes,
            "verdict": verdict and verdict.to_json(),
            "optimizer": result.optimizer or result.name,
            "sharding": result.sharding or None,
            "worst_rank": result.worst_rank,
            "ranks": [
                {
                    "rank": each.rank,
                    "peak": _peak(each.peak),
                    "reserved_peak_bytes": each.reserved_peak_bytes,
                }
                for each in result.ranks
            ],
        }


def _peak(peak: PeakResult) -> Json:
    return {
        "time_ns": peak.time_ns,
        "step": peak.step,
        "phase": peak.phase,
        "module": peak.module,
        "allocated_bytes": peak.allocated_bytes,
        "reserved_bytes": peak.reserved_bytes,
        "categories": {name.value: size for name, size in peak.categories.items()},
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for a loss that is not a number, or infinite."""
    return value if value is not None and math.isfinite(value) else None
