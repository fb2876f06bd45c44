"""Chooses the events of a window that a picture needs: of each column the highest and the last."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.web.pyramid import BUCKET, Levels, Pyramid

__all__ = ["Sample", "sample"]

Array = npt.NDArray[Any]

_DENSE = 8 * BUCKET
"""A column with so many events is read from the pyramid, by whole buckets."""


@dataclass(frozen=True)
class Sample:
    """Some events of a window, in order."""

    event: Array
    categories: Array
    """Bytes after each (rows) in each category of the pyramid (columns)."""
    exact: bool
    """They are all events of the window."""


def sample(pyramid: Pyramid, time_ns: Array, begin: int, end: int, most: int) -> Sample:
    """Choose from the events [begin, end).

    Columns are equally wide in time, as a picture's are; an edge between columns with many events moves
    to the nearest bucket, by a small part of the column's events.

    Args:
        pyramid: of the rank.
        time_ns: of each event.
        begin: first event of the window.
        end: the one behind it.
        most: about so many at most, four at least.
    """
    if end - begin <= most:
        every = pyramid.levels(begin // BUCKET, -(-end // BUCKET))
        chosen = slice(begin - every.first, end - every.first)
        return Sample(np.arange(begin, end), every.categories[:, chosen].T, exact=True)
    edges = _edges(time_ns, begin, end, max(most // 2, 2))
    events: list[int] = []
    rows: list[Array] = []

    def take(event: int, row: Array) -> None:
        if not events or event > events[-1]:
            events.append(event)
            rows.append(row)

    levels: Levels | None = None
    for position, (low, high) in enumerate(pairwise(edges)):
        if high - low >= _DENSE:
            for event, row in _of_dense(pyramid, low, high):
                take(event, row)
            continue
        if levels is None or high > levels.first + len(levels.total):
            stop = _end_of_stretch(edges, position)
            levels = pyramid.levels(low // BUCKET, -(-stop // BUCKET))
        for event in (_highest(levels, low, high), high - 1):
            take(event, levels.categories[:, event - levels.first])
    return Sample(np.array(events, np.int64), np.array(rows), exact=False)


def _edges(time_ns: Array, begin: int, end: int, columns: int) -> list[int]:
    """First event of each column, and the one behind the last."""
    first_ns, last_ns = int(time_ns[begin]), int(time_ns[end - 1])
    bounds = first_ns + np.linspace(0, last_ns - first_ns, columns + 1)[1:-1].astype(np.int64)
    inner = begin + np.searchsorted(time_ns[begin:end], bounds, side="left")
    edges = np.concatenate([[begin], inner, [end]])
    dense = np.diff(edges) >= _DENSE
    touched = np.append(dense, False) | np.append(False, dense)
    touched[0] = touched[-1] = False
    edges[touched] = (edges[touched] + BUCKET // 2) // BUCKET * BUCKET
    return sorted(set(np.clip(edges, begin, end).tolist()))


def _end_of_stretch(edges: list[int], position: int) -> int:
    """Where the columns that are read event by event end, from one of them on."""
    stop = edges[position + 1]
    for high in edges[position + 2 :]:
        if high - stop >= _DENSE:
            break
        stop = high
    return stop


def _highest(levels: Levels, low: int, high: int) -> int:
    return low + int(np.argmax(levels.total[low - levels.first : high - levels.first]))


def _of_dense(pyramid: Pyramid, low: int, high: int) -> list[tuple[int, Array]]:
    """The highest and the last event of a column, by whole buckets but for its ends."""
    begin, end = -(-low // BUCKET), high // BUCKET
    best = begin + int(np.argmax(pyramid.high_bytes[begin:end]))
    top = int(pyramid.high_bytes[best]), int(pyramid.high_event[best]), pyramid.at_high[best]
    last = pyramid.at_end[end - 1]
    for first, stop in ((low, begin * BUCKET), (end * BUCKET, high)):
        if first == stop:
            continue
        levels = pyramid.levels(first // BUCKET, first // BUCKET + 1)
        event = _highest(levels, first, stop)
        size_bytes = int(levels.total[event - levels.first])
        if size_bytes > top[0] or (size_bytes == top[0] and event < top[1]):
            top = size_bytes, event, levels.categories[:, event - levels.first]
        if stop == high:
            last = levels.categories[:, stop - 1 - levels.first]
    return [(top[1], top[2]), (high - 1, last)]
