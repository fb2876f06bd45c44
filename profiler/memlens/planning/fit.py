"""Finds the fewest GPUs on which a job fits, in few simulations of one rank.

What ranks share shrinks with their number, the rest does not: the peak is nearly a + b / n, so two tries
tell where the card is full. What is answered has been tried: it fits on so many, and not on one less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.gpus import Gpu
from memlens.comparing.results import Status
from memlens.events import Category
from memlens.planning.floor import Floor
from memlens.planning.search import Try

__all__ = ["MOST", "Fewest", "fewest_gpus"]

MOST = 1024
"""What does not fit on so many fits on no number: the share of each is next to nothing by then."""


@dataclass(frozen=True)
class Fewest:
    """The end of a search, of one optimizer under one kind of sharding."""

    optimizer: str
    mode: ShardingMode | None
    """None: as the job has it."""
    tries: tuple[Try, ...] = ()
    """Their rungs are numbers of GPUs, in the order in which they were made."""
    fewest: Try | None = None
    """None: there is no such number."""
    refused: str = ""
    """Why it was not tried."""
    failed: str = ""
    """Why the job did not come to its end."""
    stays: Mapping[Category, int] | None = None
    """Where no number will do: what is on every GPU, however many there are."""
    next_is_bound: bool = False
    """That one less does not suffice was not tried: what the layout has alone is too much."""

    def to_json(self) -> dict[str, Any]:
        """For other programs; sizes are whole bytes."""
        verdict = self.fewest and self.fewest.verdict
        return {
            "optimizer": self.optimizer,
            "sharding": self.mode and self.mode.value,
            "gpus": self.fewest and self.fewest.rung,
            "reserved_peak_bytes": verdict and verdict.reserved_peak_bytes,
            "headroom_bytes": verdict and verdict.headroom_bytes,
            "retries": verdict and verdict.retries,
            "refused": self.refused or None,
            "failed": self.failed or None,
            "stays_bytes": self.stays and {each.value: size for each, size in self.stays.items()},
            "tries": [
                {**each.to_json(), "size": each.rung}
                for each in sorted(self.tries, key=lambda each: each.rung)
            ],
        }


def fewest_gpus(
    optimizer: str,
    mode: ShardingMode | None,
    gpu: Gpu,
    measure: Callable[[int], Try],
    floor: Floor | None = None,
) -> Fewest:
    """Find the smallest number of GPUs.

    Args:
        optimizer: its name.
        mode: how ranks share the training state.
        gpu: the card.
        measure: simulates one rank of so many.
        floor: what the job holds at least, where that is known.
    """
    most = 1 if mode is ShardingMode.ZERO_0 else MOST
    first = 1 if floor is None else floor.fewest(gpu.usable_bytes, most)
    if first is None:
        assert floor is not None
        return Fewest(optimizer, mode, stays=floor.categories_at(most))
    search = _Search(gpu, measure, floor, most)
    found = search.run(first)
    tries = tuple(search.tries.values())
    broken = next((each for each in tries if each.verdict is None), None)
    if broken is not None:
        refused = broken.result.status is Status.REFUSED
        text = broken.result.reason
        return Fewest(
            optimizer,
            mode,
            tries,
            refused=text if refused else "",
            failed="" if refused else text,
        )
    if found is None:
        peak = search.tries[most].result.peak
        return Fewest(optimizer, mode, tries, stays=None if peak is None else peak.categories)
    bound = found > 1 and found - 1 not in search.tries
    return Fewest(optimizer, mode, tries, search.tries[found], next_is_bound=bound)


class _Search:
    def __init__(
        self, gpu: Gpu, measure: Callable[[int], Try], floor: Floor | None, most: int
    ) -> None:
        self._gpu = gpu
        self._measure = measure
        self._floor = floor
        self._most = most
        self.tries: dict[int, Try] = {}

    def run(self, first: int) -> int | None:
        """The smallest number that fits; None: none does, or the job fails."""
        low, high, guess = first - 1, None, first
        while True:
            tried = self._try(guess)
            if tried.verdict is None:
                return None
            if tried.fits:
                high = guess
            elif guess >= self._most:
                return None
            else:
                low = guess
            if high is not None and high - low <= 1:
                return high
            guess = self._guess(low, high)

    def _try(self, count: int) -> Try:
        if count not in self.tries:
            self.tries[count] = self._measure(count)
        return self.tries[count]

    def _guess(self, low: int, high: int | None) -> int:
        """Where the card should just be full: between what does not fit and what does."""
        end = self._most if high is None else high - 1
        wanted = self._between() if len(self.tries) > 1 else self._from_floor(low)
        if wanted is None:
            # No number seems to do; the most will tell.
            return end if high is None else (low + high) // 2
        return min(max(wanted, low + 1), end)

    def _from_floor(self, low: int) -> int | None:
        """As many as take the excess off what the layout says."""
        if self._floor is None:
            return None
        excess = _peak(self.tries[low]) - self._gpu.usable_bytes
        return self._floor.fewest(self._floor.bytes_at(low) - excess, self._most)

    def _between(self) -> int | None:
        """Of a + b / n through the two tries that are nearest to the card."""
        usable = self._gpu.usable_bytes
        one, other = sorted(self.tries, key=lambda each: abs(_peak(self.tries[each]) - usable))[:2]
        share = (_peak(self.tries[one]) - _peak(self.tries[other])) / (1 / one - 1 / other)
        room = usable - (_peak(self.tries[one]) - share / one)
        if share <= 0 or room <= 0:
            return None
        return int(-(-share // room))


def _peak(of: Try) -> int:
    return of.result.reserved_peak_bytes or 0
