"""Rows that describe a run as a whole."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from memlens.errors import CaptureError
from memlens.events import ROLLUP
from memlens.exporters.tables.columns import TABLES
from memlens.palette import CATEGORY_SERIES

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["category_rows", "encodable", "run_rows"]


def run_rows(capture: Capture, left_out: Sequence[CaptureError]) -> pa.Table:
    """The one row of the table `run`.

    Args:
        capture: the run.
        left_out: why ranks have no rows.
    """
    info = capture.info
    problems = [
        *capture.problems,
        *(each.problem for each in capture.unreadable),
        *(str(each) for each in left_out),
    ]
    row = {
        "name": encodable(info.name),
        "command": encodable(shlex.join(info.command)),
        "source": info.source,
        "world_size": info.world_size,
        "launches": capture.launches,
        "torch": info.torch_version,
        "memlens": info.memlens_version,
        "created_ns": info.created_ns,
        "problems": encodable("\n".join(problems)),
    }
    return pa.Table.from_pylist([row], schema=TABLES["run"].schema)


def category_rows() -> pa.Table:
    """The table `categories`, which is the same for all runs."""
    rollup = {member: name for name, members in ROLLUP.items() for member in members}
    rows = [
        {
            "category": series.key,
            "label": series.label,
            "rollup": rollup[series.members[0]],
            "colour": series.colour,
        }
        for series in CATEGORY_SERIES
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["categories"].schema)


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: half a surrogate pair is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()
