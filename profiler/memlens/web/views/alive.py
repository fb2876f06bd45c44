"""The blocks alive at a moment: sorted, filtered, searched, a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.answers import Allocation
from memlens.palette import CATEGORY_SERIES
from memlens.web.opened import CATEGORY_KEYS, OpenedRank
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, brief, within

__all__ = ["PARAMETERS", "alive"]

Array = npt.NDArray[Any]

PARAMETERS = ("time", "sort", "descending", "category", "search", "offset", "limit")
SORTS = ("size", "category", "name", "module", "step", "phase", "born", "op")
MOST_ROWS = 200
MOST_FRAMES = 32
MOST_PARTS = 20
_FEWEST_FRAMES = 6
_STACKS_BYTES = 90_000
"""So much of an answer may be stacks; then they become shorter, the outermost frames first."""


def alive(rank: OpenedRank, asked: Parameters) -> Json:
    """What was alive after the last event up to a time; at the peak if none is given."""
    event = rank.event_at(asked.whole_or_none("time"))
    rows = rank.alive_after(event)
    size = rank.blocks.size_bytes
    answer: Json = {
        **rank.moment(event),
        "allocated_bytes": int(size[rows].sum()),
        "count": len(rows),
    }
    if (time := asked.whole_or_none("time")) is not None:
        answer["time"] = min(time, rank.total_ns)
    category = asked.choice("category", CATEGORY_KEYS, None)
    if category is not None:
        rows = rows[rank.attribution.category[rows] == CATEGORY_KEYS.index(category)]
    rows = _search(rank, rows, asked.text("search").casefold())
    answer["matching"] = {"count": len(rows), "size_bytes": int(size[rows].sum())}
    order = asked.choice("sort", SORTS, "size") or "size"
    rows = _sorted(rank, rows, order, descending=asked.flag("descending", True))
    offset = asked.whole("offset", 0)
    page = rows[offset : offset + asked.whole("limit", 100, MOST_ROWS)]
    return within(lambda count: {**answer, **_described(rank, page[:count])}, len(page))


def _op(block: Allocation) -> str:
    """What asked for it: the innermost function that is known."""
    return block.stack[-1].function if block.stack else ""


def _stack(block: Allocation) -> str:
    return "\n".join(f"{frame.function} {frame.file}:{frame.line}" for frame in block.stack)


def _texts(rank: OpenedRank, rows: Array, what: str) -> tuple[list[str], Array]:
    """A column of texts: the different ones, and which of them each row has."""
    numbers, text_of = _TEXTS[what]
    return rank.texts(what, rows, numbers(rank)[rows], text_of)


_TEXTS: dict[str, tuple[Callable[[OpenedRank], Array], Callable[[Allocation], str]]] = {
    "name": (lambda rank: rank.attribution.name, lambda block: block.name),
    "module": (lambda rank: rank.attribution.module, lambda block: block.module),
    "op": (lambda rank: rank.blocks.stack, _op),
    "stack": (lambda rank: rank.blocks.stack, _stack),
}


def _search(rank: OpenedRank, rows: Array, wanted: str) -> Array:
    """Those with a text in their name, module, category or stack (which holds the op)."""
    if not wanted or not len(rows):
        return rows
    kinds = {
        CATEGORY_KEYS.index(series.key): wanted in f"{series.key} {series.label}".casefold()
        for series in CATEGORY_SERIES
    }
    hits = np.array([kinds[number] for number in range(len(CATEGORY_KEYS))])
    found: Array = hits[rank.attribution.category[rows]]
    for what in ("name", "module", "stack"):
        texts, which = _texts(rank, rows, what)
        found |= np.array([wanted in text.casefold() for text in texts])[which]
    matching: Array = rows[found]
    return matching


def _sorted(rank: OpenedRank, rows: Array, order: str, *, descending: bool) -> Array:
    blocks, place = rank.blocks, rank.attribution.segment[rows]
    if order in _TEXTS and len(rows):
        texts, which = _texts(rank, rows, order)
        # Several stacks may have the same op: equal texts have to be equals.
        position = {text: number for number, text in enumerate(sorted(set(texts)))}
        key = np.array([position[text] for text in texts], np.int64)[which]
    elif order == "category":
        stacking = [CATEGORY_KEYS.index(series.key) for series in CATEGORY_SERIES]
        key = np.argsort(stacking)[rank.attribution.category[rows]]
    elif order == "step":
        key = rank.segments.step[place]
    elif order == "phase":
        key = rank.segments.phase[place]
    else:
        key = blocks.alloc_ns[rows] if order == "born" else blocks.size_bytes[rows]
    # Among equals the larger ones come first, and then the older ones, whichever way the rest goes.
    ahead = -key.astype(np.int64) if descending else key.astype(np.int64)
    found: Array = rows[np.lexsort((rows, -blocks.size_bytes[rows], ahead))]
    return found


def _described(rank: OpenedRank, rows: Array) -> Json:
    blocks = [(int(row), rank.rank.allocation(int(row))) for row in rows]
    numbers = {row: int(rank.blocks.stack[row]) for row, _ in blocks}
    return {
        "rows": [_row(rank, row, block, numbers[row]) for row, block in blocks],
        "stacks": _stacks({numbers[row]: block for row, block in blocks if block.stack}),
    }


def _row(rank: OpenedRank, row: int, block: Allocation, stack: int) -> Json:
    return {
        "row": row,
        "size_bytes": block.size_bytes,
        "requested_bytes": int(rank.blocks.requested_bytes[row]),
        "category": block.category.value,
        "certainty": block.certainty.value,
        "name": brief(block.name),
        "module": brief(block.module),
        "op": brief(_op(block)),
        "step": block.step,
        "phase": block.phase.value,
        "rank": rank.rank.rank,
        "born": rank.born(row),
        "freed": rank.freed(row),
        "preexisting": block.preexisting,
        "stack": stack,
        "parts": [
            [brief(part.name), brief(part.module), part.size_bytes]
            for part in sorted(block.parts, key=lambda part: -part.size_bytes)[:MOST_PARTS]
        ],
    }


def _stacks(examples: dict[int, Allocation]) -> dict[str, list[str]]:
    """Frames by number of the stack, innermost first."""
    found = {
        number: [
            brief(f"{frame.function} {frame.file}:{frame.line}")
            for frame in block.stack[: -MOST_FRAMES - 1 : -1]
        ]
        for number, block in examples.items()
    }
    most = MOST_FRAMES
    while most > _FEWEST_FRAMES and _length(found) > _STACKS_BYTES:
        most -= 2
        found = {number: frames[:most] for number, frames in found.items()}
    return {str(number): frames for number, frames in found.items()}


def _length(stacks: dict[int, list[str]]) -> int:
    return sum(len(frame) + 3 for frames in stacks.values() for frame in frames)
