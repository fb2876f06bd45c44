"""A comparison as JSON and as CSV, for other programs.

A file appears whole or not at all: it is written beside its final place and moved there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.disk.replace import replace_file
from memlens.events import Category

if TYPE_CHECKING:
    from memlens.comparing.results import Comparison, Result

__all__ = ["CSV_HEADER", "write_csv", "write_json"]

Value = str | int | float | None

CSV_HEADER = (
    "name",
    "status",
    "reason",
    "is_baseline",
    "peak_bytes",
    "peak_difference_bytes",
    "peak_difference_percent",
    "reserved_bytes",
    *(f"{category.value}_bytes" for category in Category),
    "peak_step",
    "peak_phase",
    "peak_module",
    "steps",
    "step_time_ns",
    "step_time_ratio",
    "final_loss",
    "final_loss_difference",
    "replaced",
    "notes",
    "reused",
    "run",
    "reserved_peak_bytes",
    "fits",
    "optimizer",
    "sharding",
    "ranks",
    "worst_rank",
)
"""Columns may be added behind these, but none of them moves or changes its meaning."""


def write_json(comparison: Comparison, path: Path) -> None:
    """Write `Comparison.to_json()`.

    Raises:
        UsageError: the file cannot be written.
    """
    text = json.dumps(comparison.to_json(), indent=2, allow_nan=False) + "\n"
    replace_file(path, text.encode())


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line per variant, as RFC 4180 has it: quoted where needed, lines end with CR LF.

    Sizes are whole bytes; what is not known is empty.

    Raises:
        UsageError: the file cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(CSV_HEADER)
    for result in comparison.results:
        row = dict(_row(comparison, result))
        writer.writerow([_field(row[name]) for name in CSV_HEADER])
    replace_file(path, stream.getvalue().encode("utf-8", "backslashreplace"))


def _row(comparison: Comparison, result: Result) -> Iterator[tuple[str, Value]]:
    peak, difference = result.peak, comparison.difference(result)
    yield "name", result.name
    yield "status", result.status.value
    yield "reason", result.reason
    yield "is_baseline", _boolean(result.name == comparison.baseline)
    yield "peak_bytes", peak.allocated_bytes if peak else None
    yield "peak_difference_bytes", difference.peak_bytes if difference else None
    yield "peak_difference_percent", difference.peak_percent if difference else None
    yield "reserved_bytes", peak.reserved_bytes if peak else None
    for category in Category:
        yield f"{category.value}_bytes", peak.categories.get(category, 0) if peak else None
    yield "peak_step", peak.step if peak else None
    yield "peak_phase", peak.phase if peak else None
    yield "peak_module", peak.module if peak else None
    yield "steps", result.steps if peak else None
    yield "step_time_ns", result.step_time_ns
    yield "step_time_ratio", difference.step_time_ratio if difference else None
    yield "final_loss", result.final_loss
    yield "final_loss_difference", difference.final_loss if difference else None
    yield "replaced", "; ".join(result.replaced)
    yield "notes", "; ".join(result.notes)
    yield "reused", _boolean(result.reused)
    yield "run", result.run
    verdict = comparison.verdicts.get(result.name)
    yield "reserved_peak_bytes", result.reserved_peak_bytes
    yield "fits", None if verdict is None else _boolean(verdict.fits)
    yield "optimizer", result.optimizer or result.name
    yield "sharding", result.sharding
    yield "ranks", len(result.ranks) or None
    yield "worst_rank", result.worst_rank


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _field(value: Value) -> Value:
    # A spreadsheet takes a text that begins like this for a formula and runs it; names and reasons
    # come from the job. (A number may well begin with a minus.)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
