"""How the ranks ended that did not end in good order, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlens.across.ending import End
from memlens.report.text import count, named_ranks, shorten
from memlens.units import format_duration_ns

if TYPE_CHECKING:
    from memlens.across.summary import RankSummary

__all__ = ["ending_payload", "ending_sentences"]

MOST_SENTENCES = 5
ERROR_WIDTH = 200


def ending_sentences(ranks: Sequence[RankSummary]) -> list[str]:
    """What happened to ranks that failed or died, the first one first: it may explain the others."""
    last_ns = max((each.end.time_ns or 0 for each in ranks), default=0)
    ended = _one_per_rank([each for each in ranks if each.end.how is not End.CLOSED])
    ended.sort(key=lambda each: each.end.time_ns or 0)
    running = [each.rank for each in ended if each.end.how is End.RUNNING]
    gone = [each for each in ended if each.end.how is not End.RUNNING]
    found = []
    if running:
        verb = "is" if len(running) == 1 else "are"
        found.append(
            f"{named_ranks(running)} {verb} still running: the numbers are those of so far"
        )
    found += [_sentence(each, last_ns) for each in gone[:MOST_SENTENCES]]
    if rest := gone[MOST_SENTENCES:]:
        found.append(f"{count(len(rest), 'more rank')} failed or died afterwards")
    return found


def _sentence(summary: RankSummary, last_ns: int) -> str:
    end = summary.end
    if end.how is End.RAISED:
        text = f"rank {summary.rank} failed: {shorten(end.error or '', ERROR_WIDTH)}"
    elif end.out_of_memory:
        text = f"rank {summary.rank} ran out of memory and did not end in good order"
    else:
        text = f"rank {summary.rank} died (it was killed, or crashed)"
    if end.place is None or end.time_ns is None:
        return text + "; nothing of it was recorded"
    where = f"step {end.place.step}, {end.place.phase.value}"
    if end.place.module:
        where += f", in {end.place.module}"
    text += f"; last seen in {where}"
    if last_ns > end.time_ns:
        text += f", {format_duration_ns(last_ns - end.time_ns)} before the last rank"
    return text


def ending_payload(ranks: Sequence[RankSummary]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [
        {
            "rank": each.rank,
            "how": each.end.how.value,
            "error": each.end.error,
            "out_of_memory": each.end.out_of_memory,
            "time_ns": each.end.time_ns,
            "step": each.end.place.step if each.end.place else None,
            "phase": each.end.place.phase.value if each.end.place else None,
            "module": each.end.place.module if each.end.place else None,
            "host": each.end.host,
            "pid": each.end.pid,
        }
        for each in _one_per_rank(ranks)
        if each.end.how is not End.CLOSED
    ]


def _one_per_rank(ranks: Sequence[RankSummary]) -> list[RankSummary]:
    """Of a rank with several devices, the one of which something was recorded last."""
    found: dict[int, RankSummary] = {}
    for each in sorted(ranks, key=lambda each: each.end.time_ns or 0):
        found[each.rank] = each
    return [found[rank] for rank in sorted(found)]
