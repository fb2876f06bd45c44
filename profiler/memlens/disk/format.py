"""The capture on disk: which files, which columns, which version.

    RUN/
      run.json                 the run as a whole: format, version, command line
      rank-00000/              one folder per rank, written by that process alone
        rank.json              rank, world size, source, devices, problems; `closed` when done
        names.arrow            Arrow IPC streams, zstd, one batch per drain (about twice a second);
        marks.arrow            written in this order, so that whatever an event refers to
        tags.arrow             is already there when a process is killed
        events.arrow

An Arrow *stream* is readable up to its last whole batch after `kill -9`; an Arrow file or a Parquet
file is not. Enumerators are stored by name (dictionary-encoded, so they cost a byte or less).

Each batch carries a checksum, and its place: how many rows all streams of the rank held before it.
So a reader sees where a batch is missing, in whichever stream, and takes nothing from behind it.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa

from memlens.events import Action, Category, Certainty, MarkKind, NameKind

__all__ = [
    "CHECKSUM_KEY",
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "PLACE_KEY",
    "RANK_FILE",
    "READABLE_VERSIONS",
    "RUN_FILE",
    "SCHEMAS",
    "batch_checksum",
    "codes",
    "read_json",
    "write_json",
]

FORMAT_NAME = "memlens-capture"
FORMAT_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Version 2 did not say where in its storage a tensor lies."""
RUN_FILE = "run.json"
RANK_FILE = "rank.json"
CHECKSUM_KEY = b"crc32"
PLACE_KEY = b"rows_before"
MOST_JSON_BYTES = 16 * 2**20
"""A larger file is none of ours; a command line has 2 MiB at most."""

_ENUM = pa.dictionary(pa.int8(), pa.string())

SCHEMAS: dict[str, pa.Schema] = {
    "names": pa.schema(
        [
            ("kind", _ENUM),
            ("id", pa.int32()),
            ("parent", pa.int32()),
            ("text", pa.string()),
            ("detail", pa.string()),
        ]
    ),
    "marks": pa.schema(
        [("time_ns", pa.int64()), ("kind", _ENUM), ("id", pa.int32()), ("value", pa.int64())]
    ),
    "tags": pa.schema(
        [
            ("time_ns", pa.int64()),
            ("device", pa.int8()),  # index into rank.json's devices
            ("address", pa.uint64()),
            ("size_bytes", pa.int64()),  # of the tensor that was seen, not of its storage
            ("category", _ENUM),
            ("certainty", _ENUM),
            ("name", pa.int32()),
            ("module", pa.int32()),  # the module that owns it, -1 for none
            ("offset_bytes", pa.int64()),  # of the tensor in its storage, -1 if it is not known
        ]
    ),
    "events": pa.schema(
        [
            ("time_ns", pa.int64()),
            ("action", _ENUM),
            ("device", pa.int8()),
            ("address", pa.uint64()),
            ("requested_bytes", pa.int64()),
            # What the allocator set aside for it. 0 if it does not tell: `memlens.allocator.follow`
            # works it out from the segments. The CPU's does not round.
            ("allocated_bytes", pa.int64()),
            ("stream", pa.int64()),
            ("stack", pa.int32()),  # id of the innermost frame, -1 for none
        ]
    ),
}
"""Columns of each stream, in the order in which the streams are written."""

_ENUMS: tuple[type[Enum], ...] = (Action, Category, Certainty, MarkKind, NameKind)
_CODES = {enum: {str(member.value): index for index, member in enumerate(enum)} for enum in _ENUMS}


def codes(enum: type[Enum]) -> dict[str, int]:
    """Position of each member, by its name on disk: what a writer puts into the int8 indices."""
    return _CODES[enum]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old or the new content, never half of one."""
    text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, default=str)
    # Not the pid: processes of several hosts, or containers, may write to one folder.
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def read_json(path: Path) -> tuple[dict[str, Any], bool]:
    """Read what `write_json` wrote.

    Returns:
        The content, and whether it is what was written.

    Raises:
        ValueError: it is not a JSON object.
        RecursionError: it nests deeper than anything of ours.
        OSError: it cannot be read.
    """
    if stat.S_ISDIR(path.stat().st_mode):
        raise IsADirectoryError("it is a folder")
    if not path.is_file():  # a pipe would be waited for, a device read for ever
        raise ValueError("it is not an ordinary file")
    with path.open("rb") as file:
        data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise ValueError(f"it is larger than {MOST_JSON_BYTES} bytes")
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content, content.pop("checksum", None) == _checksum(content)


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True, default=str).encode())


def batch_checksum(batch: pa.RecordBatch, place: bytes, owner: str) -> bytes:
    """CRC-32 of a batch; Arrow's own streams would let a flipped bit through.

    Args:
        batch: its values, texts of enumerators included.
        place: how many rows came before it.
        owner: `id` in `rank.json`: files of two ranks are not to be mixed up.
    """
    value = zlib.crc32(b"%d rows after %s of %s" % (batch.num_rows, place, owner.encode()))
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            value = zlib.crc32("\0".join(column.dictionary.to_pylist()).encode(), value)
            column = column.indices
        for buffer in column.buffers():
            if buffer is not None:
                value = zlib.crc32(buffer, value)
    return str(value).encode()
