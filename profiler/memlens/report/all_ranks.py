"""What a report says about the ranks together, asked once and shown by every renderer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from memlens.across.compare import RanksCompared, compare_ranks
from memlens.across.ending import End
from memlens.across.read import ask_ranks
from memlens.across.summary import RankSummary, summarize
from memlens.report.endings import ending_sentences
from memlens.report.text import named_ranks
from memlens.report.view import choose_ranks, warnings_of

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture, Unreadable
    from memlens.palette import Series

__all__ = ["AllRanks", "Total", "view_ranks"]


@dataclass(frozen=True)
class Total:
    """A sum over ranks, and whether it is that of the job."""

    size_bytes: int
    ranks: int
    """How many are in it."""
    world_size: int
    why_partial: tuple[str, ...]
    """Why it is not the whole; empty: it is."""


@dataclass(frozen=True)
class AllRanks:
    """The ranks that a report is about."""

    capture: Capture
    asked: tuple[RankCapture, ...]
    summaries: tuple[RankSummary, ...]
    """Of each rank and device that can be read."""
    answers: tuple[object, ...]
    """What else each of these was asked."""
    unreadable: tuple[Unreadable, ...]
    is_one: bool
    """One rank was asked for, or there is no other: nothing is compared."""

    @property
    def highest(self) -> RankCapture:
        """The rank with the highest peak; the first one among equals."""
        top = max(self.summaries, key=lambda each: each.peak_bytes)
        return next(
            rank for rank in self.asked if (rank.rank, rank.device) == (top.rank, top.device)
        )

    @property
    def events(self) -> int:
        """How many allocations and frees all of them recorded."""
        return sum(each.events for each in self.summaries)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before trusting the numbers, one sentence each."""
        found = warnings_of(self.capture, self.summaries, self.unreadable)
        return found if self.is_one else (*found, *ending_sentences(self.summaries))

    @property
    def last_launch(self) -> tuple[RankSummary, ...]:
        """Those of the last start of the job."""
        last = max(each.launch for each in self.summaries)
        return tuple(each for each in self.summaries if each.launch == last)

    def compared(self, series: Sequence[Series]) -> tuple[RanksCompared, RanksCompared]:
        """All ranks compared; and those of the last start alone, which may be summed."""
        compared = compare_ranks(self.summaries, series)
        last = self.last_launch
        if len(last) == len(self.summaries):
            return compared, compared
        return compared, compare_ranks(last, series)

    def total(self, compared: RanksCompared) -> Total:
        """The sum of the ranks' own peaks.

        Args:
            compared: the ranks of the last start.
        """
        ranks = self.last_launch
        numbers = {each.rank for each in ranks}
        why = []
        left_out = [each.rank for each in self.unreadable if each.rank is not None]
        if self.unreadable:
            why.append(
                f"{named_ranks(left_out)} can not be read" if left_out else "unreadable ranks"
            )
        if len(numbers) < self.capture.info.world_size and not self.unreadable:
            why.append("the others have no capture")
        for how, text in (
            (End.DIED, "died"),
            (End.RAISED, "failed"),
            (End.RUNNING, "still running"),
        ):
            if those := [each.rank for each in ranks if each.end.how is how]:
                why.append(f"{named_ranks(those)} {text}")
        if not self.capture.is_whole and not why:
            why.append("ranks disagree on how many there are")
        return Total(
            compared.peak.sum_bytes, len(numbers), self.capture.info.world_size, tuple(why)
        )


def view_ranks(
    capture: Capture,
    number: int | None,
    also: Callable[[RankCapture], object] | None = None,
) -> AllRanks:
    """Ask ranks for their summaries.

    Args:
        capture: the run.
        number: only this rank; None: all.
        also: what else to ask each rank while its streams are at hand, as for `ask_ranks`.

    Raises:
        UsageError: there is no such rank.
        CaptureError: no rank can be read.
    """
    ranks = choose_ranks(capture, number)
    asked = ask_ranks(ranks, partial(_summary_and, also))
    unreadable = (*(capture.unreadable if number is None else ()), *asked.unreadable)
    is_one = number is not None or (
        len(ranks) == 1 and capture.info.world_size == 1 and not unreadable
    )
    return AllRanks(
        capture=capture,
        asked=ranks,
        summaries=tuple(summary for summary, _ in asked.answers),
        answers=tuple(answer for _, answer in asked.answers),
        unreadable=unreadable,
        is_one=is_one,
    )


def _summary_and(
    also: Callable[[RankCapture], object] | None, rank: RankCapture
) -> tuple[RankSummary, object]:
    return summarize(rank), None if also is None else also(rank)
