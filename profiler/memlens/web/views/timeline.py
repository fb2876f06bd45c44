"""Memory over time: what is allocated in a window, by category, with steps and phases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.segments import PHASES
from memlens.web.opened import CATEGORY_KEYS, OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sampling import sample
from memlens.web.sizes import MOST_BYTES, Json

__all__ = ["PARAMETERS", "points_of", "timeline", "window_of"]

Array = npt.NDArray[Any]

PARAMETERS = ("from", "to", "points")
MOST_STEPS = 300
MOST_PHASES = 400
_FOR_THE_REST = 40_000
"""Bytes of an answer that are not levels."""


def timeline(rank: OpenedRank, asked: Parameters) -> Json:
    """Levels in a window, the highest and the last of each column of the picture."""
    low, high = asked.window(0, rank.total_ns)
    begin, end = window_of(rank, low, high)
    pyramid = rank.pyramid
    columns = len(pyramid.categories) + 2 + (rank.reserved is not None)
    largest = max(rank.total_ns, rank.peak["allocated_bytes"])
    points = points_of(asked, 1000, columns, largest)
    found = sample(pyramid, rank.blocks.time_ns, begin, end, points - 1)
    rows = np.concatenate([pyramid.after(begin - 1)[None, :], found.categories])
    time = np.append(low, rank.blocks.time_ns[found.event] - rank.origin_ns)
    total = rows.sum(axis=1)
    answer: Json = {
        "span": [0, rank.total_ns],
        "from": low,
        "to": high,
        "time": time.tolist(),
        "allocated": total.tolist(),
        "categories": {
            CATEGORY_KEYS[category]: rows[:, slot].tolist()
            for slot, category in enumerate(pyramid.categories)
            if np.any(rows[:, slot])
        },
        "reserved": _reserved(rank, time, exact=found.exact),
        "capacity_bytes": rank.capacity_bytes,
        "exact": found.exact,
        "peak": rank.peak,
    }
    highest = int(np.argmax(total))
    # The level that holds at the beginning came about before it, and is as high from there on.
    place = rank.moment(int(found.event[highest - 1])) if highest else rank.moment(begin - 1)
    answer["window_peak"] = {**place, "time": int(time[highest])}
    answer["steps"] = _steps(rank, low, high)
    answer.update(_phases(rank, low, high))
    return answer


def window_of(rank: OpenedRank, low: int, high: int) -> tuple[int, int]:
    """The events behind the beginning of a window up to its end: the first one, and the one after."""
    time_ns = rank.blocks.time_ns
    bounds = np.array([low, high]) + rank.origin_ns
    begin, end = np.searchsorted(time_ns, bounds, side="right").tolist()
    return begin, end


def points_of(asked: Parameters, default: int, columns: int, largest: int) -> int:
    """How many entries an answer has at most: as asked, but not more than fit.

    Args:
        asked: with `points`.
        default: if it is not given.
        columns: numbers in each entry.
        largest: of these numbers.
    """
    fit = (MOST_BYTES - _FOR_THE_REST) // (columns * (len(str(largest)) + 1))
    return max(min(asked.whole("points", default, 2000), fit), 10)


def _reserved(rank: OpenedRank, time: Array, *, exact: bool) -> list[int] | None:
    """What the allocator had taken; between two entries that are not all events, the most of it."""
    if rank.reserved is None:
        return None
    until = time if exact else np.append(time[1:], time[-1])
    levels: list[int] = rank.reserved_over(time, until).tolist()
    return levels


def _steps(rank: OpenedRank, low: int, high: int) -> list[list[int]]:
    """Beginnings of steps, thinned out by a stride that is the same wherever the window is."""
    inside = [
        [step, start_ns - rank.origin_ns]
        for step, start_ns in rank.step_starts
        if low <= start_ns - rank.origin_ns <= high
    ]
    stride = -(-len(inside) // MOST_STEPS)
    return [each for each in inside if each[0] % stride == 0][:MOST_STEPS] if stride else []


def _phases(rank: OpenedRank, low: int, high: int) -> Json:
    """What the job did from when on; nothing where it changes too often to be drawn."""
    start_ns, phase = rank.phase_changes
    bounds = np.array([low, high]) + rank.origin_ns
    first, end = np.searchsorted(start_ns, bounds, side="right").tolist()
    first = max(first - 1, 0)
    if end - first > MOST_PHASES:
        return {"phases": [], "phases_left_out": end - first}  # the chart says to zoom in
    time = np.maximum(start_ns[first:end], low + rank.origin_ns) - rank.origin_ns
    return {
        "phases": [
            [when, PHASES[which].value]
            for when, which in zip(time.tolist(), phase[first:end].tolist(), strict=True)
        ],
        "phases_left_out": 0,
    }
