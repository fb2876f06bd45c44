"""Several ranks of a run on one axis: what each had allocated."""

from __future__ import annotations

from memlens.web.library import Library, OpenedRun
from memlens.web.opened import OpenedRank
from memlens.web.parameters import Parameters, Refusal
from memlens.web.sampling import sample
from memlens.web.sizes import Json
from memlens.web.views.timeline import points_of, window_of

__all__ = ["PARAMETERS", "overlay"]

PARAMETERS = ("from", "to", "ranks", "points")
MOST_RANKS = 16


def overlay(library: Library, run: OpenedRun, asked: Parameters) -> Json:
    """Levels of some ranks; times count from the earliest first event of those."""
    keys = asked.words("ranks", MOST_RANKS) or library.fitting(run, MOST_RANKS)
    opened = {key: library.rank(run.key, key) for key in keys}
    ranks = {key: rank for key, rank in opened.items() if rank.pyramid.count}
    if not ranks:
        raise Refusal("nothing was recorded of these ranks", 422)
    origin_ns = min(rank.origin_ns for rank in ranks.values())
    total_ns = max(rank.origin_ns + rank.total_ns for rank in ranks.values()) - origin_ns
    low, high = asked.window(0, total_ns)
    largest = max(total_ns, *(rank.peak["allocated_bytes"] for rank in ranks.values()))
    points = points_of(asked, 500, 2 * len(ranks), largest)
    return {
        "span": [0, total_ns],
        "from": low,
        "to": high,
        "origin_ns": str(origin_ns),
        "left_out": len(run.ranks) - len(ranks),
        "ranks": [
            {
                "key": key,
                "rank": rank.rank.rank,
                "shift": rank.origin_ns - origin_ns,
                **_levels(rank, origin_ns, low, high, points),
            }
            for key, rank in ranks.items()
        ],
    }


def _levels(rank: OpenedRank, origin_ns: int, low: int, high: int, points: int) -> Json:
    shift = rank.origin_ns - origin_ns
    begin, end = window_of(rank, low - shift, high - shift)
    found = sample(rank.pyramid, rank.blocks.time_ns, begin, end, points - 1)
    times = rank.blocks.time_ns[found.event] - origin_ns
    return {
        "time": [low, *times.tolist()],
        "allocated": [
            int(rank.pyramid.after(begin - 1).sum()),
            *found.categories.sum(axis=1).tolist(),
        ],
    }
