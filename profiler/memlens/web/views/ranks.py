"""All ranks of a run beside each other: what each holds at its peak, and how high each step came.

Reading many ranks takes a while, so it is done in a thread, a portion at a time; pages ask again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic

from memlens.across.read import ask_ranks
from memlens.errors import MemlensError
from memlens.events import Category
from memlens.rank import RankCapture
from memlens.web.library import Library, OpenedRun
from memlens.web.parameters import Parameters
from memlens.web.sizes import Json, within

__all__ = ["PARAMETERS", "ranks"]

PARAMETERS = ("offset", "limit")
MOST_COLUMNS = 40
AGAIN_AFTER_S = 5.0
_READS_BETWEEN = 10
"""Of a run that is still written, all ranks are read again after so many times as long as it took."""
_PORTION = 64


@dataclass(frozen=True)
class _Row:
    """What one rank says."""

    peak_bytes: int
    step: int
    phase: str
    categories: Mapping[Category, int]
    steps: Mapping[int, int]
    """Peak of each step."""


@dataclass
class _Rows:
    """What has been worked out of a run."""

    opened: OpenedRun
    rows: dict[str, _Row | str] = field(default_factory=dict)
    """By key of the rank; a text says why one can not be read."""
    began_s: float = field(default_factory=monotonic)
    ended_s: float | None = None
    newer: _Rows | None = None
    """The same of the run as it is by now, while that is worked out."""

    def is_due(self, run: OpenedRun) -> bool:
        """The run has changed since, and was not read all the time."""
        if self.ended_s is None or self.opened.signature == run.signature:
            return False
        rest_s = max(AGAIN_AFTER_S, _READS_BETWEEN * (self.ended_s - self.began_s))
        return monotonic() - self.ended_s > rest_s


def ranks(library: Library, run: OpenedRun, asked: Parameters) -> Json:
    """What is known by now."""
    found = _rows(library, run)
    rows = dict(found.rows)  # the thread goes on adding to it
    offset, limit = asked.whole("offset", 0), asked.whole("limit", 100, 500)
    columns = _columns(rows.values())
    shown = [
        (key, row if isinstance(row, str) else (row, _thinned(row.steps, columns)))
        for key, row in list(rows.items())[offset : offset + limit]
    ]

    def build(count: int) -> Json:
        return {
            "ready": found.ended_s is not None,
            "done": len(rows),
            "of": len(found.opened.ranks),
            "offset": offset,
            "columns": [column[0] for column in columns],
            "ranks": [_json(found.opened.ranks[key], key, row) for key, row in shown[:count]],
        }

    return within(build, len(shown))


def _json(rank: RankCapture, key: str, row: str | tuple[_Row, list[list[int]]]) -> Json:
    answer: Json = {"key": key, "rank": rank.rank, "device": rank.device, "launch": rank.launch}
    if isinstance(row, str):
        return {**answer, "error": row}
    summary, steps = row
    return {
        **answer,
        "peak_bytes": summary.peak_bytes,
        "peak_step": summary.step,
        "peak_phase": summary.phase,
        "categories": {kind.value: size for kind, size in summary.categories.items() if size},
        "steps": steps,
    }


def _columns(rows: Iterable[_Row | str]) -> list[list[int]]:
    """Steps in groups, the same for all ranks."""
    every = sorted({step for row in rows if isinstance(row, _Row) for step in row.steps})
    count = min(len(every), MOST_COLUMNS)
    edges = [len(every) * place // count for place in range(count + 1)] if count else [0]
    return [every[low:high] for low, high in pairwise(edges)]


def _thinned(steps: Mapping[int, int], columns: Sequence[Sequence[int]]) -> list[list[int]]:
    """The highest of each group of steps, under the group's first one."""
    found = []
    for column in columns:
        there = [steps[step] for step in column if step in steps]
        if there:
            found.append([column[0], max(there)])
    return found


def _rows(library: Library, run: OpenedRun) -> _Rows:
    """What is known of a run; has it worked out where it is not, or not any more."""
    with library.lock_of(run.key, "all ranks"):
        found = library.notes.get(run.key)
        if not isinstance(found, _Rows):
            found = library.notes[run.key] = _start(run)
        if found.newer is not None and found.newer.ended_s is not None:
            found = library.notes[run.key] = found.newer
        if found.newer is None and found.is_due(run):
            found.newer = _start(run)
        return found


def _start(run: OpenedRun) -> _Rows:
    found = _Rows(run)
    threading.Thread(target=_work, args=(found,), name="memlens-ranks", daemon=True).start()
    return found


def _work(found: _Rows) -> None:
    """Ask all ranks; never raises, since nobody would hear it."""
    try:
        # Its own ranks, which are read and forgotten without taking anything from those in memory.
        own = OpenedRun(found.opened.key, found.opened.folder, found.opened.signature)
        for begin in range(0, len(own.ranks), _PORTION):
            _ask(found, dict(list(own.ranks.items())[begin : begin + _PORTION]))
    except MemlensError as error:
        for key in found.opened.ranks:
            found.rows.setdefault(key, str(error))
    except Exception as error:  # a fault of ours
        for key in found.opened.ranks:
            found.rows.setdefault(key, f"internal error: {type(error).__name__}: {error}")
    finally:
        found.ended_s = monotonic()


def _ask(found: _Rows, portion: Mapping[str, RankCapture]) -> None:
    asked = ask_ranks(list(portion.values()), _summary)
    for key, answer in zip(portion, asked.answers, strict=True):
        found.rows[key] = answer


def _summary(rank: RankCapture) -> _Row | str:
    try:
        peak = rank.peak()
        steps = {step.step: step.peak_bytes for step in rank.steps()}
    except (MemlensError, MemoryError) as error:
        return str(error) or "it does not fit into memory"
    return _Row(peak.allocated_bytes, peak.step, peak.phase.value, peak.categories, steps)
