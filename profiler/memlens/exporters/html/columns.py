"""What the page needs of one rank to answer by itself: curves, and blocks in columns.

Columns of times and levels are written as changes from entry to entry, which compress well.
`web/static/sources/rank_data.js` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.answers import Frame
from memlens.attribution.lifetimes import FOREVER
from memlens.attribution.segments import PHASES
from memlens.events import Certainty
from memlens.palette import CATEGORY_SERIES
from memlens.web.opened import CATEGORY_KEYS, OpenedRank
from memlens.web.sampling import sample
from memlens.web.sizes import Json, brief

__all__ = ["MOST_ENTRIES", "rank_columns"]

Array = npt.NDArray[Any]

MOST_ENTRIES = 50_000
"""Of a curve; of longer ones the highest and the last entry of each bucket are kept."""
MOST_PHASES = 20_000
_AT_ONCE = 1_000_000
MOST_FRAMES = 64
"""Of a stack, the innermost."""
_CERTAINTIES = list(Certainty)
_SERIES = [series.key for series in CATEGORY_SERIES]


@dataclass
class _Table:
    """Different values, and which number each has."""

    numbers: dict[Any, int] = field(default_factory=dict)

    def number(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    @property
    def values(self) -> list[Any]:
        return list(self.numbers)


def rank_columns(rank: OpenedRank, key: str, origin_ns: int, most_blocks: int) -> Json:
    """All that goes into the page of one rank.

    Args:
        rank: the rank.
        key: what the page calls it.
        origin_ns: from which the page counts the beginnings of ranks.
        most_blocks: blocks that were alive at the peak go in first, then the largest.
    """
    chosen, left_out = _choose(rank, most_blocks)
    alive = np.isin(chosen, rank.alive_after(rank.pyramid.peak_event))
    levels = rank.pyramid.after(rank.pyramid.peak_event).tolist()
    start_ns, phase = rank.phase_changes
    return {
        "key": key,
        "rank": rank.rank.rank,
        "begins": rank.origin_ns - origin_ns,
        "total": rank.total_ns,
        "peak": rank.peak,
        "peak_categories": {
            CATEGORY_KEYS[category]: size
            for category, size in zip(rank.pyramid.categories, levels, strict=True)
            if size
        },
        "capacity_bytes": rank.capacity_bytes,
        "curve": _curve(rank),
        "reserved": _reserved(rank),
        "step_changes": [[0, 0]]
        + [
            [step, when - rank.origin_ns]
            for step, when in sorted(rank.segments.step_start_ns.items())
        ],
        "step_starts": [[step, when - rank.origin_ns] for step, when in rank.step_starts],
        "phases": [
            [max(when - rank.origin_ns, 0), PHASES[which].value]
            for when, which in list(zip(start_ns.tolist(), phase.tolist(), strict=True))[
                :MOST_PHASES
            ]
        ],
        "at_peak": _changes(np.flatnonzero(alive)),
        "left_out": left_out,
        "certainties": [certainty.value for certainty in _CERTAINTIES],
        "phase_names": [each.value for each in PHASES],
        **_blocks(rank, chosen),
    }


def _choose(rank: OpenedRank, most: int) -> tuple[Array, Json]:
    """Rows of the blocks that go in, in the order in which they were allocated; and what does not."""
    size = rank.blocks.size_bytes
    if len(size) <= most:
        return np.arange(len(size)), {"count": 0, "size_bytes": 0, "largest_bytes": 0}
    at_peak = np.zeros(len(size), bool)
    at_peak[rank.alive_after(rank.pyramid.peak_event)] = True
    order = np.lexsort((-size, ~at_peak))
    rest = size[order[most:]]
    return np.sort(order[:most]), {
        "count": len(rest),
        "size_bytes": int(rest.sum()),
        "largest_bytes": int(rest.max(initial=0)),
    }


def _curve(rank: OpenedRank) -> Json:
    pyramid = rank.pyramid
    # A stretch at a time, which bounds the memory that it takes.
    found = [
        sample(
            pyramid,
            rank.blocks.time_ns,
            begin,
            end := min(begin + _AT_ONCE, pyramid.count),
            max(MOST_ENTRIES * (end - begin) // pyramid.count, 10),
        )
        for begin in range(0, pyramid.count, _AT_ONCE)
    ]
    time = rank.blocks.time_ns[np.concatenate([each.event for each in found])] - rank.origin_ns
    rows = np.concatenate([each.categories for each in found])
    return {
        "exact": all(each.exact for each in found),
        "time": _changes(time),
        "allocated": _changes(rows.sum(axis=1)),
        "categories": {
            CATEGORY_KEYS[category]: _changes(rows[:, slot])
            for slot, category in enumerate(pyramid.categories)
        },
    }


def _reserved(rank: OpenedRank) -> Json | None:
    """When what the allocator had taken from the device changed, and to how much."""
    if rank.reserved is None:
        return None
    changed_ns, level = rank.reserved
    return {"time": _changes(changed_ns - rank.origin_ns), "level": _changes(level)}


def _blocks(rank: OpenedRank, rows: Array) -> Json:
    born = rank.blocks.alloc_ns[rows] - rank.origin_ns
    free_ns = rank.blocks.free_ns[rows]
    lived = np.where(free_ns == FOREVER, -1, free_ns - rank.blocks.alloc_ns[rows])
    stacks = _Stacks()
    for number, example in _examples(rank.blocks.stack, rows):
        stacks.add(number, rank.rank.allocation(example).stack)
    names, modules = _Table(), _Table()
    name_of: dict[int, int] = {}
    module_of: dict[int, int] = {}
    classes = {usage.module: usage.class_name for usage in rank.rank.modules_at(top=None)}
    for number, example in _examples(rank.attribution.name, rows):
        name_of[number] = names.number(brief(rank.rank.allocation(example).name))
    for number, example in _examples(rank.attribution.module, rows):
        block = rank.rank.allocation(example)
        module_of[number] = modules.number(block.module)
        classes[block.module] = block.module_class
    parts = _parts(rank, rows, names, modules)
    place = rank.attribution.segment[rows]
    series = np.array([_SERIES.index(key) for key in CATEGORY_KEYS])
    return {
        "names": names.values,
        "modules": [[brief(text), brief(classes.get(text, ""))] for text in modules.values],
        "functions": stacks.functions.values,
        "places": stacks.places.values,
        "frames": stacks.frames.values,
        "stacks": stacks.stacks,
        "blocks": {
            "row": _changes(rows),
            "born": _changes(born),
            "lived": lived.tolist(),
            "size": rank.blocks.size_bytes[rows].tolist(),
            "requested": rank.blocks.requested_bytes[rows].tolist(),
            "category": series[rank.attribution.category[rows]].tolist(),
            "certainty": rank.attribution.certainty[rows].tolist(),
            "name": [name_of[number] for number in rank.attribution.name[rows].tolist()],
            "module": [module_of[number] for number in rank.attribution.module[rows].tolist()],
            "step": rank.segments.step[place].tolist(),
            "phase": rank.segments.phase[place].tolist(),
            "stack": [stacks.numbers[number] for number in rank.blocks.stack[rows].tolist()],
            "preexisting": rank.blocks.preexisting[rows].astype(int).tolist(),
            "parts": parts,
        },
    }


def _examples(numbers: Array, rows: Array) -> list[tuple[int, int]]:
    """Each number that some rows have, and one of these rows."""
    values, first = np.unique(numbers[rows], return_index=True)
    return list(zip(values.tolist(), rows[first].tolist(), strict=True))


def _parts(rank: OpenedRank, rows: Array, names: _Table, modules: _Table) -> list[Any]:
    """Of blocks that several tensors share: position among the rows, and name, module, size of each."""
    shared = np.unique(rank.attribution.parts.block)
    positions = np.flatnonzero(np.isin(rows, shared)).tolist()
    return [
        [
            position,
            [
                [
                    names.number(brief(part.name)),
                    modules.number(part.module) if part.module else -1,
                    part.size_bytes,
                ]
                for part in rank.rank.allocation(int(rows[position])).parts
            ],
        ]
        for position in positions
    ]


class _Stacks:
    """Stacks that share frames, which share functions and places."""

    def __init__(self) -> None:
        self.functions, self.places, self.frames = _Table(), _Table(), _Table()
        self.numbers: dict[int, int] = {}
        """Ours, by the capture's."""
        self.stacks: list[list[int]] = []
        """Frames of each, innermost first."""

    def add(self, number: int, frames: Sequence[Frame]) -> None:
        self.numbers[number] = len(self.stacks)
        self.stacks.append(
            [
                self.frames.number(
                    (
                        self.functions.number(brief(frame.function)),
                        self.places.number(brief(f"{frame.file}:{frame.line}")),
                    )
                )
                for frame in frames[: -MOST_FRAMES - 1 : -1]
            ]
        )


def _changes(levels: Array | Iterable[int]) -> list[int]:
    values = np.asarray(levels, np.int64)
    found: list[int] = np.diff(values, prepend=0).tolist()
    return found
