"""Keeps the end of what is recorded in memory, and what it takes to understand it.

For `--oom-only`: nothing goes to disk before a request fails, however long the job runs. Whenever
too much has come together, the older part is attributed, and replaced by its outcome: a census of the
blocks that are still in use, each with a tag that says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.attribution.device import DeviceHistory
from memlens.disk.format import SCHEMAS, codes
from memlens.disk.reader import RankData, columns_of, names_of
from memlens.disk.writer import make_batch
from memlens.events import Action, MarkKind
from memlens.recording.held import Sink

__all__ = ["Tail", "segments_at"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
_MARK = codes(MarkKind)
_ACTION = codes(Action)
_GROWS = [_ACTION[name] for name in ("segment_census", "segment_alloc", "segment_map")]
_SHRINKS = [_ACTION[name] for name in ("segment_free", "segment_unmap")]


class Tail:
    """What was recorded last, cut at the beginning of a training step.

    Args:
        keep_rows: how many events stay as they are, at least.
        most_rows: with how many rows of all kinds the older part is replaced.
        header: what `rank.json` will say of the allocator.
    """

    is_full = False
    """Never."""

    def __init__(
        self, keep_rows: int, most_rows: int, header: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._keep_rows = keep_rows
        self._most_rows = self._limit = most_rows
        self._header = header
        self._batches: dict[str, list[pa.RecordBatch]] = {table: [] for table in SCHEMAS}
        self._base: dict[int, int] = {}
        """What the allocator counts at the cut, by device; its later counts begin there as well."""
        self.rows = 0
        """How many are kept, names not counted: those stay."""

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Keep a batch."""
        if table == "marks" and self._base:
            marks = columns_of(pa.Table.from_batches([batch]), table, 1)
            rebased = _rebase(marks, self._base)
            batch = make_batch(table, [rebased[field.name] for field in SCHEMAS[table]])
        self._batches[table].append(batch)
        if table != "names":
            self.rows += batch.num_rows
        if table == "events" and self.rows > self._limit:
            self._shorten()

    def release(self, sink: Sink) -> None:
        """Hand over what is kept, in the order in which a reader needs it."""
        batches, self._batches = self._batches, {table: [] for table in SCHEMAS}
        self.rows = 0
        for table in SCHEMAS:
            for batch in batches[table]:
                sink.write(table, batch)

    def _shorten(self) -> None:
        header: dict[str, Any] = {**self._header(), "closed": True, "problems": []}
        devices = len(header["devices"])
        columns = {
            table: columns_of(pa.Table.from_batches(batches, SCHEMAS[table]), table, devices)
            for table, batches in self._batches.items()
        }
        cut_ns = self._cut(columns["events"]["time_ns"], columns["marks"])
        if cut_ns is not None:
            data = RankData(
                header,
                columns["events"],
                columns["tags"],
                columns["marks"],
                names_of(columns["names"]),
            )
            histories = [DeviceHistory(data, device) for device in range(devices)]
            counted = {each.device: _counted_bytes(each, cut_ns) for each in histories}
            for device, size in counted.items():
                self._base[device] = self._base.get(device, 0) + size
            for table, rows in (
                ("events", [_events(each, cut_ns) for each in histories]),
                ("tags", [_tags(each, cut_ns) for each in histories]),
                ("marks", [_marks(columns["marks"], counted, cut_ns)]),
            ):
                joined = [
                    np.concatenate([part[field.name] for part in rows]) for field in SCHEMAS[table]
                ]
                self._batches[table] = [make_batch(table, joined)]
            self.rows = sum(
                batch.num_rows
                for table, batches in self._batches.items()
                for batch in batches
                if table != "names"
            )
        # Where one step alone is longer, the next attempt has to wait.
        self._limit = max(self._most_rows, self.rows + self._most_rows // 2)

    def _cut(self, time_ns: Array, marks: Columns) -> int | None:
        """Where the last step begins behind which enough is left; None: there is none."""
        time_ns = np.sort(time_ns)
        starts = np.sort(marks["time_ns"][marks["kind"] == _MARK["step"]])
        starts = starts[starts > time_ns[0]]
        left = len(time_ns) - np.searchsorted(time_ns, starts)
        enough = starts[left >= self._keep_rows]
        return int(enough[-1]) if len(enough) else None


def _later(columns: Columns, cut_ns: int) -> Columns:
    keep = columns["time_ns"] >= cut_ns
    return {name: column[keep] for name, column in columns.items()}


def _alive(history: DeviceHistory, cut_ns: int) -> Array:
    blocks = history.blocks
    return np.flatnonzero((blocks.alloc_ns < cut_ns) & (blocks.free_ns >= cut_ns))


def _events(history: DeviceHistory, cut_ns: int) -> Columns:
    """Segments and blocks at the cut as a census, and the events from there on."""
    alive, blocks = _alive(history, cut_ns), history.blocks
    pieces = segments_at(history.events, cut_ns)
    count = len(pieces) + len(alive)
    size = np.append([end - start for start, end in pieces], blocks.size_bytes[alive])
    census = {
        "time_ns": np.full(count, cut_ns),
        "action": np.repeat(
            [_ACTION["segment_census"], _ACTION["census"]], [len(pieces), len(alive)]
        ),
        "device": np.full(count, history.device),
        "address": np.append(
            np.array([start for start, _ in pieces], np.uint64), blocks.address[alive]
        ),
        "requested_bytes": np.append(size[: len(pieces)], blocks.requested_bytes[alive]),
        "allocated_bytes": size,
        "stream": np.zeros(count),
        "stack": np.append(np.full(len(pieces), -1), blocks.stack[alive]),
    }
    later = _later(history.events, cut_ns)
    return {
        name: np.concatenate([census[name].astype(later[name].dtype), later[name]])
        for name in later
    }


def segments_at(events: Columns, cut_ns: int) -> list[tuple[int, int]]:
    """What the allocator holds of the device at the cut: (start, end) of each piece."""
    older = events["time_ns"] < cut_ns
    rows = np.flatnonzero(older & np.isin(events["action"], [*_GROWS, *_SHRINKS]))
    pieces: list[tuple[int, int]] = []
    for row in rows.tolist():
        start = int(events["address"][row])
        end = start + int(events["allocated_bytes"][row])
        if events["action"][row] in _GROWS:
            pieces.append((start, end))
        else:
            pieces = [rest for piece in pieces for rest in _without(piece, start, end)]
    return pieces


def _without(piece: tuple[int, int], start: int, end: int) -> list[tuple[int, int]]:
    low, high = piece
    if end <= low or high <= start:
        return [piece]
    return [rest for rest in ((low, start), (end, high)) if rest[0] < rest[1]]


def _tags(history: DeviceHistory, cut_ns: int) -> Columns:
    """What each block of the census is, and the tags from there on."""
    blocks, found, parts = history.blocks, history.attribution, history.attribution.parts
    is_alive = np.zeros(len(blocks.first), bool)
    is_alive[_alive(history, cut_ns)] = True
    alive, inner = np.flatnonzero(is_alive), parts.within(is_alive)
    block = np.append(alive, parts.block[inner])  # that each tag speaks of
    census: Columns = {
        "time_ns": np.full(len(block), cut_ns),
        "device": np.full(len(block), history.device),
        "address": blocks.address[block],
        "size_bytes": np.append(blocks.size_bytes[alive], parts.size_bytes[inner]),
        "category": found.category[block],
        "certainty": found.certainty[block],
        "name": np.append(found.name[alive], parts.name[inner]),
        "module": np.append(found.module[alive], parts.module[inner]),
        "offset_bytes": np.append(np.zeros(len(alive)), parts.offset_bytes[inner]),
    }
    mine = history.data.tags["device"] == history.device
    later = _later({name: column[mine] for name, column in history.data.tags.items()}, cut_ns)
    return {
        name: np.concatenate([census[name].astype(column.dtype), column])
        for name, column in later.items()
    }


def _counted_bytes(history: DeviceHistory, cut_ns: int) -> int:
    """What the allocator has handed out less what it has taken back, from the beginning to the cut."""
    last = int(np.searchsorted(history.blocks.time_ns, cut_ns, side="left")) - 1
    return int(history.witnessed_bytes[last]) if last >= 0 else 0


def _rebase(marks: Columns, base: Mapping[int, int]) -> Columns:
    """Marks whose counts of the allocator begin at the cut."""
    value = marks["value"]
    for device, size in base.items():
        mine = (marks["kind"] == _MARK["allocator_total"]) & (np.maximum(marks["id"], 0) == device)
        value = np.where(mine, value - size, value)
    return {**marks, "value": value}


def _marks(marks: Columns, counted: Mapping[int, int], cut_ns: int) -> Columns:
    """The beginning at the cut, and the marks from there on."""
    later = _rebase(_later(marks, cut_ns), counted)
    gauges = np.flatnonzero((marks["kind"] == _MARK["gauge"]) & (marks["time_ns"] < cut_ns))
    last_of = {int(marks["id"][row]): int(marks["value"][row]) for row in gauges.tolist()}
    first = [("recording_on", -1, 0), *(("gauge", key, value) for key, value in last_of.items())]
    beginning: Columns = {
        "time_ns": np.full(len(first), cut_ns),
        "kind": np.array([_MARK[kind] for kind, _, _ in first]),
        "id": np.array([number for _, number, _ in first]),
        "value": np.array([value for _, _, value in first]),
    }
    return {
        name: np.concatenate([beginning[name].astype(later[name].dtype), later[name]])
        for name in later
    }
