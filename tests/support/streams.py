"""Columns as a reader hands them to attribution, built from rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import Lifetimes, pair, witnessed_bytes
from memlens.disk.format import codes
from memlens.disk.reader import NameTables
from memlens.events import Action, Category, Certainty, MarkKind

__all__ = [
    "Array",
    "Event",
    "Mark",
    "brute_force",
    "events",
    "marks",
    "names",
    "paired",
    "tags",
    "witnessed",
]

Array = npt.NDArray[Any]
Event = tuple[int, str, int, int]
"""Time, action, address, bytes."""
Mark = tuple[int | str, ...]
"""Time, kind, id (-1 when left out), value (0 when left out)."""


def events(rows: Iterable[Event]) -> dict[str, Array]:
    """Columns of the events' stream."""
    listed = list(rows)
    action = codes(Action)
    sizes = [size for _, _, _, size in listed]
    return {
        "time_ns": np.array([time for time, _, _, _ in listed], np.int64),
        "action": np.array([action[name] for _, name, _, _ in listed], np.int8),
        "device": np.zeros(len(listed), np.int8),
        "address": np.array([address for _, _, address, _ in listed], np.uint64),
        "requested_bytes": np.array(sizes, np.int64),
        "allocated_bytes": np.array(sizes, np.int64),
        "stream": np.zeros(len(listed), np.int64),
        "stack": np.arange(len(listed), dtype=np.int32),
    }


def paired(
    rows: Iterable[Event], on_ns: Sequence[int] = (0,), off_ns: Sequence[int] = ()
) -> Lifetimes:
    """Lifetimes of these events."""
    return pair(events(rows), np.array(on_ns, np.int64), np.array(off_ns, np.int64))


def witnessed(rows: Iterable[Event], on_ns: Sequence[int] = (0,)) -> Array:
    """What the allocator itself counts of these events."""
    return witnessed_bytes(events(rows), np.array(on_ns, np.int64))


def marks(rows: Iterable[Mark]) -> dict[str, Array]:
    """Columns of the marks' stream."""
    full = [(*row, *(-1, 0)[len(row) - 2 :]) for row in rows]
    kind = codes(MarkKind)
    return {
        "time_ns": np.array([row[0] for row in full], np.int64),
        "kind": np.array([kind[str(row[1])] for row in full], np.int8),
        "id": np.array([row[2] for row in full], np.int32),
        "value": np.array([row[3] for row in full], np.int64),
    }


def tags(
    rows: Iterable[tuple[int, int, Category] | tuple[int, int, Category, int]],
) -> dict[str, Array]:
    """Columns of the tags' stream, from (time, address, category, name or the row's number)."""
    listed = list(rows)
    category = codes(Category)
    count = len(listed)
    return {
        "time_ns": np.array([row[0] for row in listed], np.int64),
        "device": np.zeros(count, np.int8),
        "address": np.array([row[1] for row in listed], np.uint64),
        "size_bytes": np.full(count, 8, np.int64),
        "category": np.array([category[row[2].value] for row in listed], np.int8),
        "certainty": np.full(count, codes(Certainty)["declared"], np.int8),
        "name": np.array(
            [row[3] if len(row) == 4 else number for number, row in enumerate(listed)], np.int32
        ),
        "module": np.full(count, -1, np.int32),
        "offset_bytes": np.zeros(count, np.int64),
    }


def names(scopes: Mapping[int, tuple[str, str]] | None = None) -> NameTables:
    """Name tables that know some scopes."""
    return NameTables({}, {}, dict(scopes or {}), {})


def brute_force(
    rows: Iterable[Event], on_ns: Sequence[int] = (0,)
) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Replay events on a dictionary of what is alive.

    Returns:
        After each event, in order of time: bytes allocated, and what is alive as (index of the event
        that began it, bytes), sorted.
    """
    alive: dict[int, tuple[int, int]] = {}
    totals, contents = [], []
    stretch = 0
    for index, (time, action, address, size) in enumerate(sorted(rows, key=lambda row: row[0])):
        while stretch + 1 < len(on_ns) and time >= on_ns[stretch + 1]:
            stretch += 1
            alive.clear()
        alive.pop(address, None)
        if action in ("alloc", "census"):
            alive[address] = (index, size)
        totals.append(sum(held for _, held in alive.values()))
        contents.append(sorted(alive.values()))
    return totals, contents
