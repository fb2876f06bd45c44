"""Reads one rank's folder into arrays. A damaged one gives an error, never wrong numbers.

The streams of a process that was killed end somewhere, each for itself. Batches say how many rows came
before them in all streams together, so the longest beginning in which nothing is missing can be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.answers import OutOfMemory
from memlens.disk.format import CHECKSUM_KEY, PLACE_KEY, RANK_FILE, SCHEMAS, batch_checksum, codes
from memlens.disk.headers import MOST, RANK_FIELDS, one_line, read_header
from memlens.disk.oom import read_bundles
from memlens.errors import CaptureError
from memlens.events import Action, Category, Certainty, MarkKind, NameKind, WeightKind

__all__ = ["NameTables", "RankData", "columns_of", "names_of", "read_rank"]

Array = npt.NDArray[Any]

_ENUMS: dict[tuple[str, str], type[Enum]] = {
    ("names", "kind"): NameKind,
    ("marks", "kind"): MarkKind,
    ("tags", "category"): Category,
    ("tags", "certainty"): Certainty,
    ("events", "action"): Action,
}
_OLD_TAGS = SCHEMAS["tags"].remove(SCHEMAS["tags"].get_field_index("offset_bytes"))
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, KeyError)
_NAME_KINDS = list(NameKind)
_WEIGHT_KINDS = {kind.value: kind for kind in WeightKind}


@dataclass(frozen=True)
class NameTables:
    """Texts by number."""

    module: dict[int, tuple[str, str]]
    """Qualified name and class name."""
    tensor: dict[int, str]
    scope: dict[int, tuple[str, str]]
    stack: Mapping[int, tuple[int, str, str]]
    """Number of the frame that called it, function, file:line."""
    weight_kind: dict[int, WeightKind] = field(default_factory=dict)
    """Of the tensors of which it is known."""


@dataclass(frozen=True)
class RankData:
    """One rank's streams, as columns. Enumerators are positions in their enumeration."""

    header: dict[str, Any]
    events: dict[str, Array]
    tags: dict[str, Array]
    marks: dict[str, Array]
    names: NameTables
    problems: tuple[str, ...] = ()
    """What is missing, one sentence each."""
    bundles: tuple[OutOfMemory, ...] = ()
    """Requests for memory that failed."""


@dataclass(frozen=True)
class _Stream:
    """What can be read of one file."""

    batches: list[tuple[int, pa.RecordBatch]]
    """With the number of rows that came before each, in all streams."""
    is_cut: bool
    """It ends within a batch."""


def read_rank(folder: Path) -> RankData:
    """Read a rank's folder, up to its last whole batch if its process was killed.

    Raises:
        CaptureError: it is damaged, or not ours.
    """
    header = read_header(folder / RANK_FILE, RANK_FIELDS, what="rank folder")
    closed: bool = header["closed"]
    streams = {
        table: _read_stream(folder / f"{table}.arrow", table, header["id"], closed=closed)
        for table in SCHEMAS
    }
    kept, missing_from = _without_gaps(streams)
    problems = []
    if closed:
        rows = {table: sum(batch.num_rows for batch in kept[table]) for table in SCHEMAS}
        if rows != header.get("rows"):
            raise CaptureError(
                f"damaged capture: {folder} holds {_counts(rows)}, "
                f"and {RANK_FILE} promises {_counts(header.get('rows'))}"
            )
    else:
        problems.append(
            "recording ended without being closed (the process was killed, or nothing could be written "
            "any more); its last moments are missing"
        )
        if missing_from is not None:
            cut = [f"{table}.arrow" for table in SCHEMAS if streams[table].is_cut]
            problems.append(
                f"{' and '.join(cut) or 'a stream'} ends too early; nothing that was written "
                f"after row {missing_from} is used"
            )
    devices = len(header["devices"])
    del streams
    columns = {}
    try:
        for table in SCHEMAS:
            # Batches go as soon as they are copied: of large captures, two copies are one too many.
            content = pa.Table.from_batches(kept.pop(table), SCHEMAS[table])
            columns[table] = columns_of(content, table, devices)
            del content
        names = names_of(columns["names"])
    except (ValueError, pa.ArrowException) as error:
        raise CaptureError(f"damaged capture: {folder}: {error}") from None
    # What arrow has freed it would keep for itself.
    pa.default_memory_pool().release_unused()
    bundles, unread = read_bundles(folder)
    return RankData(
        header,
        columns["events"],
        columns["tags"],
        columns["marks"],
        names,
        (*problems, *unread),
        bundles,
    )


def _counts(rows: object) -> str:
    return (
        ", ".join(f"{count} {table}" for table, count in rows.items())
        if isinstance(rows, dict)
        else repr(rows)
    )[:200]


def _read_stream(path: Path, table: str, owner: str, *, closed: bool) -> _Stream:
    if path.exists() and not path.is_file():
        raise CaptureError(f"damaged capture: {path} is not an ordinary file")
    try:
        with pa.OSFile(str(path), "rb") as file:
            return _read_batches(file, path, table, owner)
    except FileNotFoundError:
        if not closed:  # the process was killed before it made the file
            return _Stream([], is_cut=True)
        raise CaptureError(f"damaged capture: {path} is missing") from None
    except UnicodeEncodeError:  # arrow opens no such file
        raise CaptureError(f"cannot read {str(path)!r}: its name is not UTF-8") from None
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {one_line(error)}") from None


def _read_batches(file: pa.OSFile, path: Path, table: str, owner: str) -> _Stream:
    batches: list[tuple[int, pa.RecordBatch]] = []
    size_bytes = file.size()

    def at_end(error: BaseException) -> _Stream:
        """The process was killed while it wrote this: fine at the end of the file only."""
        if file.tell() < size_bytes:
            raise CaptureError(f"damaged capture: {path}: {one_line(error)}") from None
        return _Stream(batches, is_cut=True)

    try:
        reader = pa.ipc.open_stream(file)
    except _ARROW_ERRORS as error:
        return at_end(error)
    if not reader.schema.equals(SCHEMAS[table]) and not reader.schema.equals(_OLD_TAGS):
        raise CaptureError(f"damaged capture: {path} has other columns than {table}")
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            batch.validate(full=True)
        except StopIteration:
            if file.tell() < size_bytes:
                raise CaptureError(f"damaged capture: {path} goes on after its end") from None
            return _Stream(batches, is_cut=False)
        except _ARROW_ERRORS as error:
            return at_end(error)
        place = metadata.get(PLACE_KEY, b"") if metadata is not None else b""
        if not _is_sound(batch, place, owner, metadata):
            raise CaptureError(
                f"damaged capture: {path}: the checksum of batch {len(batches)} is wrong"
            )
        if table == "tags" and batch.num_columns < len(SCHEMAS[table]):
            batch = _with_offsets(batch)
        batches.append((int(place), batch))


def _with_offsets(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Tags of version 2, which does not say where in its storage a tensor lies."""
    unknown = pa.array(np.full(batch.num_rows, -1, np.int64))
    return pa.RecordBatch.from_arrays([*batch.columns, unknown], schema=SCHEMAS["tags"])


def _is_sound(batch: pa.RecordBatch, place: bytes, owner: str, metadata: Any) -> bool:
    if not (place.isdigit() and len(place) < 19):
        return False
    if any(
        isinstance(column, pa.DictionaryArray) and column.dictionary.null_count
        for column in batch.columns
    ):
        return False
    return bool(metadata.get(CHECKSUM_KEY) == batch_checksum(batch, place, owner))


def _without_gaps(
    streams: dict[str, _Stream],
) -> tuple[dict[str, list[pa.RecordBatch]], int | None]:
    """The batches up to the first one that is missing, and how many rows those are."""
    written = sorted(
        (
            (place, table, batch)
            for table, stream in streams.items()
            for place, batch in stream.batches
        ),
        key=lambda item: (item[0], item[2].num_rows),
    )
    kept: dict[str, list[pa.RecordBatch]] = {table: [] for table in streams}
    rows = 0
    for place, table, batch in written:
        if place != rows:
            return kept, rows
        kept[table].append(batch)
        rows += batch.num_rows
    return kept, None


def columns_of(table: pa.Table, name: str, devices: int) -> dict[str, Array]:
    """Columns as numpy arrays (texts as lists), each value within its bounds.

    Raises:
        ValueError: one is not. The checksums hold, so this was not written by memlens.
    """
    columns: dict[str, Array] = {}
    bounds = {
        "time_ns": (0, MOST),
        "device": (0, devices),
        "size_bytes": (0, MOST),
        "offset_bytes": (-1, MOST),
        "requested_bytes": (0, MOST),
        "allocated_bytes": (0, MOST),
        "value": (-MOST, MOST),
    }
    for key in table.column_names:
        column = table.column(key)
        if column.null_count:
            raise ValueError(f"{name} has no {key} in some rows")
        enum = _ENUMS.get((name, key))
        if enum is not None:
            columns[key] = _positions(column, enum)
        elif pa.types.is_string(column.type):
            columns[key] = np.array(column.to_pylist(), object)
        else:
            columns[key] = column.to_numpy()
        low, high = bounds.get(key, (None, None))
        values = columns[key]
        if low is not None and len(values) and not low <= values.min() <= values.max() < high:
            raise ValueError(f"{name} has {key} between {values.min()} and {values.max()}")
    if "allocated_bytes" in columns and columns["allocated_bytes"].sum(dtype=float) >= MOST:
        raise ValueError(f"{name} allocate more than any machine has")
    return columns


def _positions(column: pa.ChunkedArray, enum: type[Enum]) -> Array:
    """Positions in today's enumeration, whatever order the writer's had."""
    known = codes(enum)
    parts = [np.empty(0, np.int8)]
    for chunk in column.chunks:
        texts = chunk.dictionary.to_pylist()
        unknown = [text for text in texts if text not in known]
        if unknown:
            raise ValueError(f"no {enum.__name__} is called {unknown[0]!r:.40}")
        translate = np.array([known[text] for text in texts], np.int8)
        parts.append(translate[chunk.indices.to_numpy()])
    return np.concatenate(parts)


def names_of(columns: dict[str, Array]) -> NameTables:
    """Texts by number, from the columns of the stream of names."""
    tables = {kind: _Names(columns, kind) for kind in NameKind}
    tensors = tables[NameKind.TENSOR]
    return NameTables(
        {number: (text, detail) for number, (_, text, detail) in tables[NameKind.MODULE].items()},
        {number: text for number, (_, text, _) in tensors.items()},
        {number: (text, detail) for number, (_, text, detail) in tables[NameKind.SCOPE].items()},
        tables[NameKind.STACK],
        {
            number: _WEIGHT_KINDS[detail]
            for number, (_, _, detail) in tensors.items()
            if detail in _WEIGHT_KINDS
        },
    )


class _Names(Mapping[int, tuple[int, str, str]]):
    """Parent, text and detail by number, of one kind; made into a table when it is first looked at.

    Most names are frames of stacks, which many questions do not need.
    """

    def __init__(self, columns: dict[str, Array], kind: NameKind) -> None:
        self._columns = columns
        self._kind = _NAME_KINDS.index(kind)

    @cached_property
    def _table(self) -> dict[int, tuple[int, str, str]]:
        rows = np.flatnonzero(self._columns["kind"] == self._kind)
        number, *values = (
            self._columns[name][rows].tolist() for name in ("id", "parent", "text", "detail")
        )
        return dict(zip(number, zip(*values, strict=True), strict=True))

    def __getitem__(self, number: int) -> tuple[int, str, str]:
        return self._table[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
