"""The tables of an export and their columns: schemas and `columns.md` are both made from here.

Sizes are whole bytes, times are nanoseconds: `_ns` since the Unix epoch, `_elapsed_ns` since the first
event of the rank. A column that may have no value says when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from memlens.events import Category

__all__ = ["TABLES", "Column", "Table", "columns_markdown"]

TEXT, INT, BOOL = pa.string(), pa.int64(), pa.bool_()


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    type: pa.DataType
    text: str
    null: str = ""
    """What it means that there is no value; empty: there always is one."""


@dataclass(frozen=True)
class Table:
    """One table."""

    text: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """For Arrow and Parquet; each field carries what it means."""
        return pa.schema(
            [
                pa.field(
                    each.name,
                    each.type,
                    nullable=bool(each.null),
                    metadata={"description": _meaning(each)},
                )
                for each in self.columns
            ],
            metadata={"description": self.text},
        )


def _meaning(column: Column) -> str:
    return f"{column.text}; no value: {column.null}" if column.null else column.text


def _per_category(pattern: str, text: str) -> Iterator[Column]:
    for category in Category:
        yield Column(pattern.format(category.value), INT, text.format(category.value))


_KEY = (
    Column("rank", INT, "number of the rank"),
    Column("launch", INT, "which start of the job it belongs to, from 0 on"),
    Column("device", TEXT, "`cpu`, `cuda:0`"),
)
_PLACE = (
    Column("step", INT, "training step"),
    Column("phase", TEXT, "`init`, `forward`, `backward`, `optimizer` or `other`"),
    Column("module", TEXT, "qualified name of the module at work; empty: outside of modules"),
)

TABLES: dict[str, Table] = {
    "run": Table(
        "The run as a whole, in one row.",
        (
            Column("name", TEXT, "name of its folder"),
            Column("command", TEXT, "command line of the job, quoted for a shell; may be empty"),
            Column("source", TEXT, "`cpu`, `cuda` or `simulated`"),
            Column("world_size", INT, "how many ranks the job had"),
            Column("launches", INT, "how often the job was started"),
            Column("torch", TEXT, "version", "not known"),
            Column("memlens", TEXT, "version that recorded it"),
            Column("created_ns", INT, "when it began"),
            Column("problems", TEXT, "what is wrong with it, one sentence a line; mostly empty"),
        ),
    ),
    "categories": Table(
        "What a block can be for, in stacking order.",
        (
            Column("category", TEXT, "as in `blocks`, and in names of columns"),
            Column("label", TEXT, "for people"),
            Column("rollup", TEXT, "which of the five published names it belongs to"),
            Column("colour", TEXT, "`#RRGGBB`"),
        ),
    ),
    "ranks": Table(
        "One row per rank and device.",
        (
            *_KEY,
            Column("sharding", TEXT, "how the training is spread over ranks; empty: not known"),
            Column("events", INT, "allocations and frees that were recorded"),
            Column("blocks", INT, "how many rows of `blocks` are its own"),
            Column("first_event_ns", INT, "begin of `_elapsed_ns`", "nothing was recorded"),
            Column("last_event_ns", INT, "when it ends", "nothing was recorded"),
            Column("peak_bytes", INT, "most bytes allocated at one time"),
            Column("peak_ns", INT, "when that was, for the first time"),
            Column("peak_event", INT, "after which event", "nothing was recorded"),
            *(Column(f"peak_{each.name}", each.type, f"then: {each.text}") for each in _PLACE),
            *_per_category("peak_{}_bytes", "of `peak_bytes`: {}"),
            Column(
                "reserved_bytes",
                INT,
                "what the allocator held of the device at the peak",
                "it takes nothing in advance",
            ),
            Column(
                "reserved_peak_bytes",
                INT,
                "most that it ever held of the device",
                "it takes nothing in advance",
            ),
            Column("complete", BOOL, "nothing is lost, and recording ended in good order"),
            Column("lost_events", INT, "events that are known to be missing"),
            Column("blind_ns", INT, "time in which nothing was recorded"),
            Column("uncovered_bytes", INT, "most bytes seen in tensors outside the allocator"),
            Column(
                "witness_difference_bytes",
                INT,
                "largest difference to the allocator's own count",
            ),
            Column("problems", TEXT, "what went wrong, one sentence a line; mostly empty"),
        ),
    ),
    "steps": Table(
        "One row per rank, device and training step.",
        (
            *_KEY,
            Column("step", INT, "number of the training step"),
            Column("start_ns", INT, "end of the previous `optimizer.step()`"),
            Column("end_ns", INT, "end of its own"),
            Column("peak_ns", INT, "when the most was allocated within it"),
            Column("peak_bytes", INT, "how much that was"),
            Column("end_bytes", INT, "allocated at its end"),
            *_per_category("peak_{}_bytes", "of `peak_bytes`: {}"),
            *_per_category("end_{}_bytes", "of `end_bytes`: {}"),
        ),
    ),
    "segments": Table(
        "What the job did when: one row for each stretch of time with one step, phase and module.",
        (
            *_KEY,
            Column("start_ns", INT, "when it begins", "before recording"),
            Column("end_ns", INT, "when it ends", "not before recording did"),
            *_PLACE,
        ),
    ),
    "timeline": Table(
        "Bytes allocated over time, for drawing. Of more than 10,000 events of a rank, the highest and "
        "the last of each stretch are kept, so that peaks and levels are true. `blocks` has every event.",
        (
            *_KEY,
            Column("time_ns", INT, "from when on the row holds"),
            Column("elapsed_ns", INT, "the same since the first event of the rank"),
            Column("allocated_bytes", INT, "sum of those of the categories"),
            *_per_category("{}_bytes", "bytes of {}"),
            Column(
                "reserved_bytes",
                INT,
                "what the allocator held of the device by then",
                "it takes nothing in advance",
            ),
        ),
    ),
    "blocks": Table(
        "Every block of memory: what it was, whose, from when to when.",
        (
            Column("block", INT, "number of the block, for `parts`"),
            *_KEY,
            Column("alloc_ns", INT, "when it was allocated"),
            Column("free_ns", INT, "when it was freed", "never"),
            Column("alloc_elapsed_ns", INT, "`alloc_ns` since the first event of the rank"),
            Column("free_elapsed_ns", INT, "`free_ns` since the first event of the rank", "never"),
            Column(
                "alloc_event",
                INT,
                "position of the allocation among the events of rank and device, which is exact "
                "where several have one time",
            ),
            Column("free_event", INT, "position of the free among them", "never"),
            Column("address", pa.uint64(), "where; used again after the free"),
            Column("size_bytes", INT, "what the allocator set aside"),
            Column("requested_bytes", INT, "what it was asked for"),
            Column("parts_bytes", INT, "how much of it has rows in `parts`"),
            Column("category", TEXT, "what it was for; see `categories`"),
            Column(
                "certainty",
                TEXT,
                "`declared`: an object that we know holds it; `inferred`: concluded from when and "
                "where it was allocated and freed",
            ),
            Column(
                "weight_kind",
                TEXT,
                "of a weight: `trainable`, `frozen`, `buffer`, `quantised`, `adapter` or `unknown`",
                "it is none",
            ),
            Column("name", TEXT, "`layers.0.weight`, `exp_avg of layers.0.weight`; may be empty"),
            Column(
                "module",
                TEXT,
                "who owns the parameter that it belongs to; else the module at work when it was "
                "allocated; may be empty",
            ),
            Column("module_class", TEXT, "class of the module; may be empty"),
            Column("step", INT, "training step of the allocation"),
            Column("phase", TEXT, "phase of the allocation, as in `segments`"),
            Column("preexisting", BOOL, "it was there before recording began"),
            Column(
                "site",
                TEXT,
                "innermost line of the job's own code, as `file:line function`; of a library's where "
                "there is none; empty: not known",
            ),
            Column("stack", INT, "who allocated it, as in `stacks`", "not recorded"),
        ),
    ),
    "parts": Table(
        "What lies where in blocks that several tensors share (a flat partition of many parameters).",
        (
            Column("block", INT, "as in `blocks`"),
            Column("part", INT, "from 0 on in each block, by offset"),
            Column("offset_bytes", INT, "from the block's beginning"),
            Column("size_bytes", INT, "how much of it"),
            Column("name", TEXT, "as in `blocks`; `w[1024:4096]` where only those elements are there"),
            Column("module", TEXT, "who owns it; may be empty"),
        ),
    ),
    "stacks": Table(
        "One row per frame of each different stack of the run.",
        (
            Column("stack", INT, "number of the stack"),
            Column("depth", INT, "0: the outermost frame"),
            Column("function", TEXT, "its name"),
            Column("file", TEXT, "path, as it was recorded"),
            Column("line", INT, "0: not known"),
        ),
    ),
}  # fmt: skip
"""Every table, in the order in which to explain them."""


_INTRODUCTION = """\
# Tables of an export

`memlens export RUN --to parquet` and `--to csv` write these tables, one file each. Sizes are whole
bytes, times are nanoseconds: `_ns` since the Unix epoch, `_elapsed_ns` since the first event of the
rank. `rank`, `launch` and `device` together are the key of a rank. Where the last column is empty
there is always a value: a text that is not known is empty, not missing. (In CSV a missing value is
an empty field, and an empty text is `""`.)

Several runs are one query in DuckDB: `FROM read_parquet('*/parquet/ranks.parquet', filename=true)`."""


def columns_markdown() -> str:
    """All tables and columns, for people."""
    lines = [_INTRODUCTION]
    for name, table in TABLES.items():
        lines += ["", f"## {name}", "", table.text, ""]
        lines += ["| column | type | what it is | no value |", "| :--- | :--- | :--- | :--- |"]
        lines += [
            f"| `{each.name}` | {each.type} | {each.text} | {each.null} |" for each in table.columns
        ]
    return "\n".join(lines) + "\n"
