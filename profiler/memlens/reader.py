"""Reads one rank's folder into arrays. A damaged one gives an error, never wrong numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.errors import CaptureError
from memlens.events import Action, Category, Certainty, MarkKind, NameKind
from memlens.format import (
    CHECKSUM_KEY,
    FORMAT_NAME,
    FORMAT_VERSION,
    RANK_FILE,
    SCHEMAS,
    batch_checksum,
    codes,
    read_json,
)

__all__ = ["NameTables", "RankData", "read_header", "read_rank"]

Array = npt.NDArray[Any]

_ENUMS: dict[str, type[Enum]] = {
    "action": Action,
    "category": Category,
    "certainty": Certainty,
}


@dataclass(frozen=True)
class NameTables:
    """Texts by number."""

    module: dict[int, tuple[str, str]]
    """Qualified name and class name."""
    tensor: dict[int, str]
    scope: dict[int, tuple[str, str]]
    stack: dict[int, tuple[int, str, str]]
    """Number of the frame that called it, function, file:line."""


@dataclass(frozen=True)
class RankData:
    """One rank's streams, as columns. Enumerators are positions in their enumeration."""

    header: dict[str, Any]
    events: dict[str, Array]
    tags: dict[str, Array]
    marks: dict[str, Array]
    names: NameTables


def read_header(path: Path, *, what: str) -> dict[str, Any]:
    """Read `run.json` or `rank.json` and see that it is ours and of this version.

    Raises:
        CaptureError: it is not.
    """
    try:
        header = read_json(path)
    except FileNotFoundError:
        raise CaptureError(f"not a memlens {what}: {path} is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CaptureError(f"damaged memlens {what}: {path}: {_one_line(error)}") from None
    if header.get("format") != FORMAT_NAME:
        raise CaptureError(f"not a memlens {what}: {path} has format {header.get('format')!r:.40}")
    if header.get("version") != FORMAT_VERSION:
        raise CaptureError(
            f"{path} has format version {header.get('version')!r:.40}, and this memlens reads "
            f"version {FORMAT_VERSION}; read it with the memlens that wrote it "
            f"({header.get('memlens', 'unknown')!r:.40})"
        )
    return header


def read_rank(folder: Path) -> RankData:
    """Read a rank's folder, up to its last whole batch if its process was killed.

    Raises:
        CaptureError: it is damaged, or not ours.
    """
    header = read_header(folder / RANK_FILE, what="rank folder")
    closed = header.get("closed") is True
    tables = {}
    for table in SCHEMAS:
        tables[table] = _read_stream(folder / f"{table}.arrow", table, closed=closed)
        if closed and (header.get("rows") or {}).get(table) != tables[table].num_rows:
            raise CaptureError(
                f"damaged capture: {folder / table}.arrow holds {tables[table].num_rows} rows, "
                f"and {RANK_FILE} promises {(header.get('rows') or {}).get(table)}"
            )
    devices = header.get("devices")
    if not isinstance(devices, list) or not devices:
        raise CaptureError(f"damaged capture: {folder / RANK_FILE} names no devices")
    return RankData(
        header,
        _columns(tables["events"]),
        _columns(tables["tags"]),
        _columns(tables["marks"], {"kind": MarkKind}),
        _names(tables["names"]),
    )


def _read_stream(path: Path, table: str, *, closed: bool) -> pa.Table:
    schema = SCHEMAS[table]
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path), "rb") as file:
            try:
                reader = pa.ipc.open_stream(file)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                # A process killed while it made the file leaves no schema.
                if closed or file.size() > 8192:
                    raise CaptureError(f"damaged capture: {path}: {_one_line(error)}") from None
                return schema.empty_table()
            if not reader.schema.equals(schema):
                raise CaptureError(f"damaged capture: {path} has other columns than {table}")
            while True:
                try:
                    batch, metadata = reader.read_next_batch_with_custom_metadata()
                    batch.validate(full=True)
                except StopIteration:
                    break
                except (pa.ArrowException, OSError, ValueError, MemoryError, KeyError) as error:
                    if closed:
                        raise CaptureError(f"damaged capture: {path}: {_one_line(error)}") from None
                    break  # the batch that was being written when the process was killed
                stored = metadata.get(CHECKSUM_KEY) if metadata is not None else None
                if stored != batch_checksum(batch):
                    raise CaptureError(
                        f"damaged capture: {path}: the checksum of batch {len(batches)} is wrong"
                    )
                batches.append(batch)
    except FileNotFoundError:
        raise CaptureError(f"damaged capture: {path} is missing") from None
    except OSError as error:
        raise CaptureError(f"cannot read {path}: {_one_line(error)}") from None
    return pa.Table.from_batches(batches, schema)


def _columns(table: pa.Table, enums: dict[str, type[Enum]] = _ENUMS) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            columns[name] = _positions(column, enums[name])
        else:
            columns[name] = column.to_numpy()
    return columns


def _positions(column: pa.ChunkedArray, enum: type[Enum]) -> Array:
    """Positions in today's enumeration, whatever order the writer's had."""
    known = codes(enum)
    parts = [np.empty(0, np.int8)]
    for chunk in column.chunks:
        texts = chunk.dictionary.to_pylist()
        unknown = [text for text in texts if text not in known]
        if unknown:
            raise CaptureError(f"damaged capture: no {enum.__name__} is called {unknown[0]!r:.40}")
        translate = np.array([known[text] for text in texts], np.int8)
        parts.append(translate[chunk.indices.to_numpy()])
    return np.concatenate(parts)


def _names(table: pa.Table) -> NameTables:
    kinds = list(codes(NameKind))
    rows: dict[str, dict[int, tuple[int, str, str]]] = {kind: {} for kind in kinds}
    kind_column = _positions(table.column("kind"), NameKind).tolist()
    columns = [table.column(name).to_pylist() for name in ("id", "parent", "text", "detail")]
    for kind, number, parent, text, detail in zip(kind_column, *columns, strict=True):
        rows[kinds[kind]][number] = (parent, text, detail)
    return NameTables(
        {number: (text, detail) for number, (_, text, detail) in rows["module"].items()},
        {number: text for number, (_, text, _) in rows["tensor"].items()},
        {number: (text, detail) for number, (_, text, detail) in rows["scope"].items()},
        rows["stack"],
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
