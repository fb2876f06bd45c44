"""A run as a folder of tables, `blocks.parquet` and so on, or as CSV.

    OUT/
      columns.md      what each column means
      run             one row
      ranks           one row per rank and device: peak, coverage
      steps, segments, timeline
      blocks, parts, stacks
      categories      labels, colours, the five published names

Rows are made and written in portions, so that what this needs beside the capture does not grow with
the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from memlens.errors import CaptureError
from memlens.exporters.tables.columns import TABLES, columns_markdown
from memlens.exporters.tables.of_rank import RankTables, Stacks
from memlens.exporters.tables.of_run import category_rows, run_rows
from memlens.report.view import choose_ranks

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["export_csv", "export_parquet"]

ROW_GROUP = 1 << 17
"""Rows that are written at a time: some 10 MB, and enough for a reader to skip by."""


def export_parquet(capture: Capture, folder: Path) -> None:
    """Write tables as Parquet files into an empty folder.

    Raises:
        CaptureError: no rank can be read.
    """
    _export(capture, folder, "parquet", _parquet)


def export_csv(capture: Capture, folder: Path) -> None:
    """Write tables as CSV files, with a line of names first, into an empty folder.

    Raises:
        CaptureError: no rank can be read.
    """
    _export(capture, folder, "csv", pyarrow.csv.CSVWriter)


class _Writer(Protocol):
    def write_table(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


def _parquet(path: Path, schema: pa.Schema) -> _Writer:
    """Numbers that ascend, or repeat, take a few bits each; texts stand once in each row group."""
    texts = [each.name for each in schema if each.type == pa.string()]
    numbers = [each.name for each in schema if pa.types.is_integer(each.type)]
    writer: _Writer = pyarrow.parquet.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=texts,
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
    )
    return writer


class _TableFile:
    """Collects rows, and writes them when they are many."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        if sum(each.num_rows for each in self._waiting) >= ROW_GROUP:
            self._write()

    def close(self) -> None:
        try:
            self._write()
        finally:
            self._writer.close()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []


def _export(
    capture: Capture, folder: Path, suffix: str, opener: Callable[[Path, pa.Schema], _Writer]
) -> None:
    (folder / "columns.md").write_text(columns_markdown(), encoding="utf-8")
    with ExitStack() as open_files:
        files = {}
        for name, table in TABLES.items():
            files[name] = _TableFile(opener(folder / f"{name}.{suffix}", table.schema))
            open_files.callback(files[name].close)
        for name, rows in _rows(capture):
            files[name].add(rows)


def _rows(capture: Capture) -> Iterator[tuple[str, pa.Table]]:
    """Rows of all tables, each with the name of its table."""
    stacks = Stacks()
    blocks = 0
    left_out: list[CaptureError] = []
    ranks = choose_ranks(capture, None)
    for rank in ranks:
        try:
            tables = RankTables(rank, blocks, stacks)
        except CaptureError as error:  # the others are still worth having
            left_out.append(error)
            continue
        yield from tables.rows(ROW_GROUP)
        blocks += tables.block_count
        rank.release()
    if len(left_out) == len(ranks):
        raise left_out[0]
    yield "run", run_rows(capture, left_out)
    yield "categories", category_rows()
