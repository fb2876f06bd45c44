"""Finds the largest size that fits on a card, in few simulations.

The peak is nearly affine in a batch, so two tries tell where the card is full. What is answered has been
tried: the size fits, and the next one does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memlens.catalogue.gpus import Gpu
from memlens.comparing.results import Result
from memlens.errors import SimulationError
from memlens.planning.sizes import Ladder
from memlens.planning.verdict import Verdict

__all__ = ["Found", "Try", "search"]

FURTHEST = 64
"""One step upwards goes no further than to so many times the rung, however flat the peak is there."""
FLAT = 8
"""Where the peak has not changed, the step upwards."""
NEAR = 64
"""An extrapolation is taken to be right up to such a part of it."""
IDLE_RUNG = 4096
"""If the peak is the same up to here as at the first rung, the size has no influence."""


@dataclass(frozen=True)
class Try:
    """One size that was tried."""

    rung: int
    label: str
    result: Result
    verdict: Verdict | None
    """None: the job did not come to its end."""

    @property
    def fits(self) -> bool:
        """It ran, and the card holds it."""
        return self.verdict is not None and self.verdict.fits

    def to_json(self) -> dict[str, Any]:
        """For other programs; sizes are whole bytes."""
        peak, verdict = self.result.peak, self.verdict
        return {
            "size": int(self.label) if self.label.isdecimal() else self.label,
            "fits": self.fits,
            "allocated_peak_bytes": peak and peak.allocated_bytes,
            "reserved_peak_bytes": self.result.reserved_peak_bytes,
            "verdict": verdict and verdict.to_json(),
            "reason": self.result.reason or None,
            "run": self.result.run or None,
            "reused": self.result.reused,
        }


@dataclass(frozen=True)
class Found:
    """The end of a search."""

    what: str
    """`batch`, `tokens` or `model`."""
    gpu: Gpu
    tries: tuple[Try, ...]
    """In the order in which they were made."""
    largest: Try | None
    """None: not even the first fits."""
    next: Try | None
    """The one after it, which does not; None: there is no larger one."""
    end: str = ""
    """Why there is none."""

    def to_json(self) -> dict[str, Any]:
        """What `memlens plan --max-batch --json` prints."""

        def size(of: Try | None) -> Any:
            return None if of is None else of.to_json()["size"]

        return {
            "what": self.what,
            "gpu": self.gpu.name,
            "total_bytes": self.gpu.total_bytes,
            "usable_bytes": self.gpu.usable_bytes,
            "largest": size(self.largest),
            "next": size(self.next),
            "end": self.end or None,
            "tries": [each.to_json() for each in self.tries],
        }


def search(ladder: Ladder, gpu: Gpu, measure: Callable[[int], Try]) -> Found:
    """Find the largest rung that fits.

    Args:
        ladder: what is tried.
        gpu: the card.
        measure: tries a rung.

    Raises:
        SimulationError: the job fails at the first rung, or the size has no influence.
    """
    tries: dict[int, Try] = {}

    def fits(rung: int) -> bool:
        if rung not in tries:
            tries[rung] = measure(rung)
        return tries[rung].fits

    first = 1
    if not fits(first):
        if tries[first].verdict is None:
            raise SimulationError(_failed(tries[first]))
        return Found(ladder.what, gpu, tuple(tries.values()), None, tries[first])
    low, high = _bracket(ladder, gpu, fits, tries)
    stride = 0
    guess = low if high is None else _between(low, high, gpu, tries)
    while high is not None and high - low > 1:
        # Where the extrapolation has come close, on from there in steps that grow.
        stride = max(2 * stride, guess // NEAR) if stride else 1
        if fits(guess):
            low = guess
            guess = max(low + stride, _between(low, high, gpu, tries))
        else:
            high = guess
            guess = min(high - stride, _between(low, high, gpu, tries))
        if not low < guess < high:
            guess = (low + high) // 2
    return Found(
        ladder.what,
        gpu,
        tuple(tries.values()),
        tries[low],
        None if high is None else tries[high],
        ladder.end if high is None else "",
    )


def _bracket(
    ladder: Ladder, gpu: Gpu, fits: Callable[[int], bool], tries: dict[int, Try]
) -> tuple[int, int | None]:
    """Go up from the first rung: the highest that fits, and one that does not (None: all fit)."""
    low, previous = 1, 1
    while True:
        if ladder.rungs is not None and low >= ladder.rungs:
            return low, None
        guess = 2 if low == 1 else _beyond(low, previous, gpu, tries)
        guess = min(guess, ladder.rungs or guess)
        if not fits(guess):
            return low, guess
        low, previous = guess, low
        if ladder.rungs is None and low >= IDLE_RUNG and _same(tries[low], tries[1]):
            raise SimulationError(
                f"the size seems to have no influence: the peak is the same with {tries[low].label} "
                f"as with {tries[1].label}; does the job use it?"
            )


def _beyond(low: int, previous: int, gpu: Gpu, tries: dict[int, Try]) -> int:
    """The first rung that should not fit any more."""
    rise = _peak(tries[low]) - _peak(tries[previous])
    room = gpu.usable_bytes - _peak(tries[low])
    if rise <= 0 or room < 0:
        return low * FLAT
    ahead = max(0, room * (low - previous) // rise)
    return min(low + ahead + 1, low * FURTHEST)


def _between(low: int, high: int, gpu: Gpu, tries: dict[int, Try]) -> int:
    """The last rung that should fit, if the peak were affine between two."""
    peak, top = _peak(tries[low]), _peak(tries[high])
    if peak > gpu.usable_bytes:  # it fits since the allocator gives back what it has cached
        return low
    if tries[high].verdict is None or top <= gpu.usable_bytes:
        return (low + high) // 2
    guess = low + (gpu.usable_bytes - peak) * (high - low) // (top - peak)
    return min(max(guess, low), high)


def _peak(of: Try) -> int:
    return of.result.reserved_peak_bytes or 0


def _same(one: Try, other: Try) -> bool:
    """Not one byte differs; where the peak is that of step(), the batch would still be seen in it."""
    peaks = [(each.result.peak, each.result.reserved_peak_bytes) for each in (one, other)]
    held = [(peak and (peak.allocated_bytes, peak.categories), most) for peak, most in peaks]
    return held[0] == held[1]


def _failed(first: Try) -> str:
    result = first.result
    return f"the job failed in simulation: {result.reason} (see {result.run or 'no run'})"
