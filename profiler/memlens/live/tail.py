"""Reads what is new of a rank's streams while another process (or this one) still writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from memlens.disk.format import CHECKSUM_KEY, PLACE_KEY, RANK_FILE, SCHEMAS, batch_checksum
from memlens.disk.headers import RANK_FIELDS, read_header
from memlens.disk.reader import columns_of
from memlens.errors import CaptureError

__all__ = ["Columns", "RankTail"]

Columns = dict[str, npt.NDArray[Any]]
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
"""Batches are small; handing columns to other threads takes longer than unpacking them."""
_MOST_BYTES = 64 << 20
"""Read of one stream at a time; far more than comes together between two looks."""


class RankTail:
    """The four streams of a rank; each row is handed out once.

    Args:
        folder: the rank's folder.

    Raises:
        CaptureError: its header is damaged, or not ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header: dict[str, Any] = {}
        self.read_header()
        self._streams = {
            table: _StreamTail(folder / f"{table}.arrow", table, self.header["id"])
            for table in SCHEMAS
        }
        self._waiting: list[tuple[int, int, str, pa.RecordBatch]] = []
        """Batches before which another one is missing: place, rows, table, batch."""
        self._rows = 0

    def read_header(self) -> None:
        """Read `rank.json` once more.

        Raises:
            CaptureError: it is damaged.
        """
        self.header = read_header(self.folder / RANK_FILE, RANK_FIELDS, what="rank folder")

    def read(self) -> dict[str, Columns]:
        """The rows that have come since the last call, by table; tables without any are left out.

        Raises:
            CaptureError: a stream is damaged.
        """
        for table, stream in self._streams.items():
            self._waiting += [
                (place, batch.num_rows, table, batch) for place, batch in stream.read()
            ]
        self._waiting.sort(key=lambda item: item[:2])
        new: dict[str, list[pa.RecordBatch]] = {}
        taken = 0
        # The streams are files of their own: one may be seen further along than another.
        for place, rows, table, batch in self._waiting:
            if place != self._rows:
                break
            new.setdefault(table, []).append(batch)
            self._rows += rows
            taken += 1
        del self._waiting[:taken]
        devices = len(self.header["devices"])
        try:
            return {
                table: columns_of(pa.Table.from_batches(batches), table, devices)
                for table, batches in new.items()
            }
        except (ValueError, pa.ArrowException) as error:
            raise CaptureError(f"damaged capture: {self.folder}: {error}") from None


class _StreamTail:
    """One Arrow IPC stream that grows."""

    def __init__(self, path: Path, table: str, owner: str) -> None:
        self._path = path
        self._table = table
        self._owner = owner
        self._offset = 0
        self._head = b""
        """Schema and dictionaries, without which no batch can be read."""

    def read(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The whole batches that are new, with how many rows came before each in all streams."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CaptureError(f"cannot read {self._path}: {error}") from None
        head, length = _whole_messages(data)
        if not length:
            return
        stream = self._head + data[:length]
        self._head += head
        self._offset += length
        try:
            with pa.ipc.open_stream(pa.py_buffer(stream), options=_OPTIONS) as reader:
                if not reader.schema.equals(SCHEMAS[self._table]):
                    raise CaptureError(f"{self._path} has other columns than {self._table}")
                yield from self._batches(reader)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CaptureError(f"damaged capture: {self._path}: {error}") from None

    def _batches(self, reader: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            place = metadata.get(PLACE_KEY, b"") if metadata is not None else b""
            if not place.isdigit() or metadata.get(CHECKSUM_KEY) != batch_checksum(
                batch, place, self._owner
            ):
                raise CaptureError(f"damaged capture: {self._path}: a checksum is wrong")
            yield int(place), batch


def _whole_messages(data: bytes) -> tuple[bytes, int]:
    """The messages at the beginning of `data` that are complete.

    Returns:
        Those that are no batches (schema, dictionaries), and the length of all.
    """
    reader = pa.BufferReader(data)
    head, end = b"", 0
    while True:
        try:
            message = pa.ipc.read_message(reader)
        except (EOFError, pa.ArrowException, OSError):  # half a message, or the stream's end
            return head, end
        start, end = end, reader.tell()
        if message.type != "record batch":
            head += data[start:end]
