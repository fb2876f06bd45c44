"""Writes one rank's folder, batch by batch."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memlens.disk.format import (
    CHECKSUM_KEY,
    FORMAT_NAME,
    FORMAT_VERSION,
    PLACE_KEY,
    RANK_FILE,
    SCHEMAS,
    batch_checksum,
    write_json,
)
from memlens.errors import OutputExistsError
from memlens.events import Action, Category, Certainty, MarkKind, NameKind

__all__ = ["RankWriter", "make_batch", "open_rank"]

_DICTIONARIES: dict[tuple[str, str], type[Enum]] = {
    ("names", "kind"): NameKind,
    ("marks", "kind"): MarkKind,
    ("tags", "category"): Category,
    ("tags", "certainty"): Certainty,
    ("events", "action"): Action,
}


def _dictionary(enum: type[Enum]) -> pa.Array:
    return pa.array([member.value for member in enum], pa.string())


_VALUES = {key: _dictionary(enum) for key, enum in _DICTIONARIES.items()}


def make_batch(table: str, columns: Sequence[Any]) -> pa.RecordBatch:
    """Turn columns (lists or numpy arrays, enumerators as positions) into one batch of a stream."""
    schema = SCHEMAS[table]
    arrays = []
    for field, column in zip(schema, columns, strict=True):
        values = _VALUES.get((table, field.name))
        if values is None:
            arrays.append(pa.array(column, field.type))
        else:
            arrays.append(pa.DictionaryArray.from_arrays(pa.array(column, pa.int8()), values))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class RankWriter:
    """The four streams and `rank.json` of one process.

    Args:
        folder: where they go; made here, in the run's folder, and must not exist.
        header: what `rank.json` says from the start.

    Raises:
        FileExistsError: the folder is already there.
        OSError: it cannot be made, or not written to.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        folder.mkdir()
        self.folder = folder
        self._id = os.urandom(8).hex()
        self._header = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "id": self._id,
            **header,
            "closed": False,
        }
        self.update()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._streams: dict[str, Any] = {}
        self._rows = dict.fromkeys(SCHEMAS, 0)
        self._device_events: Counter[int] = Counter()
        self._broken = False
        for table, schema in SCHEMAS.items():
            # OSFile hands each batch to the kernel at once; Python's open() would buffer the last.
            sink = pa.OSFile(str(folder / f"{table}.arrow"), "wb")
            self._streams[table] = (sink, pa.ipc.new_stream(sink, schema, options=options))

    def update(self, **changes: Any) -> None:
        """Change what `rank.json` says."""
        self._header.update(changes)
        write_json(self.folder / RANK_FILE, self._header)

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Append one batch to a stream.

        Raises:
            OSError: it cannot be written, or an earlier one could not: half a batch ends a stream.
        """
        if not batch.num_rows:
            return
        if self._broken:
            raise OSError(f"an earlier batch could not be written to {self.folder}")
        place = b"%d" % sum(self._rows.values())
        metadata = {PLACE_KEY: place, CHECKSUM_KEY: batch_checksum(batch, place, self._id)}
        try:
            self._streams[table][1].write_batch(batch, metadata)
        except BaseException:
            self._broken = True
            raise
        self._rows[table] += batch.num_rows
        if table == "events":
            # Not by Arrow's own functions: they would be imported now, it may be at the job's end,
            # where an import makes Python forget that it was Ctrl-C.
            found = np.unique(batch.column("device").to_numpy(), return_counts=True)
            self._device_events.update(dict(zip(*(each.tolist() for each in found), strict=True)))

    def close(self, **changes: Any) -> None:
        """End the streams and say in `rank.json` that the session closed in good order.

        Raises:
            OSError: something could not be written; what is on disk stays readable as unclosed.
        """
        streams, self._streams = self._streams, {}
        with ExitStack() as undo:
            for sink, stream in streams.values():
                undo.callback(sink.close)
                if not self._broken:
                    stream.close()
        self._header.update(changes)
        # So that a reader knows, without the streams, which of a host's devices the process used.
        devices = range(len(self._header["devices"]))
        self.update(
            closed=not self._broken,
            rows=self._rows,
            device_events=[self._device_events[device] for device in devices],
        )


def open_rank(run: Path, rank: int | None, header: dict[str, object]) -> RankWriter:
    """Make the folder of a process in a run, by a name that is not taken yet.

    Raises:
        OutputExistsError: a hundred names are.
        OSError: it can not be made.
    """
    # Two processes may take themselves for the same rank (two scripts one after the other, on a
    # host without a launcher); the second gets a folder of its own name.
    names = [f"process-{socket.gethostname()}-{os.getpid()}"]
    if rank is not None:
        names.insert(0, f"rank-{rank:05d}")
    names += [f"{names[0]}-{number}" for number in range(2, 100)]
    for name in names:
        try:
            return RankWriter(run / name, header)
        except FileExistsError:
            continue
    raise OutputExistsError(f"{run} is full of captures of rank {rank}; choose another folder")
