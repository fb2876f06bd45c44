"""A finished capture that grows once more before the eyes of a reader, batch by batch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from memlens.disk.format import CHECKSUM_KEY, PLACE_KEY, RANK_FILE, SCHEMAS, read_json, write_json
from memlens.disk.reader import columns_of
from memlens.disk.writer import RankWriter, make_batch

__all__ = ["drains", "grow", "in_batches"]


def drains(rank_folder: Path) -> Iterator[dict[str, int]]:
    """How long each stream was whenever a batch of events had been written."""
    written: list[tuple[int, int, str, int]] = []
    lengths = {}
    for table in SCHEMAS:
        data = (rank_folder / f"{table}.arrow").read_bytes()
        reader = pa.BufferReader(data)
        places = _places(data)
        while True:
            try:
                message = pa.ipc.read_message(reader)
            except EOFError:
                break
            if message.type == "record batch":
                place, rows = next(places)
                written.append((place, rows, table, reader.tell()))
            else:
                lengths[table] = reader.tell()
    for _, _, table, end in sorted(written):
        lengths[table] = end
        if table == "events":
            yield dict(lengths)
    yield {table: (rank_folder / f"{table}.arrow").stat().st_size for table in SCHEMAS}


def _places(data: bytes) -> Iterator[tuple[int, int]]:
    with pa.ipc.open_stream(data) as reader:
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            assert metadata[CHECKSUM_KEY]
            yield int(metadata[PLACE_KEY]), batch.num_rows


def grow(run: Path, copy: Path, every: int = 1) -> Iterator[Path]:
    """Write `copy` in the steps in which `run` (of one rank) was written; yields the rank's folder.

    Args:
        run: a finished capture.
        copy: where it grows.
        every: yield after so many batches of events.
    """
    (rank,) = (path.parent for path in run.glob(f"*/{RANK_FILE}"))
    header, _ = read_json(rank / RANK_FILE)
    target = copy / rank.name
    target.mkdir(parents=True)
    shutil.copy(run / "run.json", copy / "run.json")
    open_header = {
        name: value
        for name, value in header.items()
        if name not in ("rows", "device_events", "ended_ns")
    }
    write_json(target / RANK_FILE, {**open_header, "closed": False})
    states = list(drains(rank))
    whole = {table: (rank / f"{table}.arrow").read_bytes() for table in SCHEMAS}
    before = dict.fromkeys(SCHEMAS, 0)
    for number, lengths in enumerate(states, 1):
        for table, length in lengths.items():
            with open(target / f"{table}.arrow", "ab") as file:
                file.write(whole[table][before[table] : length])
        before = lengths
        last = number == len(states)
        if last:
            write_json(target / RANK_FILE, header)
        if last or number % every == 0:
            yield target


def in_batches(run: Path, out: Path, rows: int) -> Path:
    """A copy of a run of one rank, written in batches of so many events."""
    (folder,) = (path.parent for path in run.glob(f"*/{RANK_FILE}"))
    header, _ = read_json(folder / RANK_FILE)
    out.mkdir()
    shutil.copy(run / "run.json", out / "run.json")
    own = ("format", "version", "id", "closed", "rows", "device_events")
    writer = RankWriter(
        out / folder.name, {name: value for name, value in header.items() if name not in own}
    )
    columns = {}
    for table in SCHEMAS:
        with pa.ipc.open_stream((folder / f"{table}.arrow").read_bytes()) as reader:
            columns[table] = columns_of(reader.read_all(), table, len(header["devices"]))

    def write(table: str, start: int, end: int) -> None:
        parts = [columns[table][field.name][start:end] for field in SCHEMAS[table]]
        writer.write(table, make_batch(table, parts))

    write("names", 0, len(columns["names"]["id"]))
    before = {"marks": 0, "tags": 0}
    times = columns["events"]["time_ns"]
    for start in range(0, len(times), rows):
        end = min(start + rows, len(times))
        for table, first in before.items():
            mine = columns[table]["time_ns"]
            stop = len(mine) if end == len(times) else int(np.searchsorted(mine, times[end - 1]))
            write(table, first, stop)
            before[table] = stop
        write("events", start, end)
    writer.close()
    return out
