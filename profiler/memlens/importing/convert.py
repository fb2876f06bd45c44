"""Makes a run of snapshots: one rank each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np

from memlens.disk.format import SCHEMAS, codes
from memlens.disk.runs import create_run
from memlens.disk.writer import RankWriter, make_batch
from memlens.events import MarkKind
from memlens.importing.device import ImportedDevice
from memlens.importing.evidence import read_stacks
from memlens.importing.pickles import read_snapshot
from memlens.importing.snapshot import Snapshot, parse_snapshot
from memlens.options import Options
from memlens.recording.names import Names

__all__ = ["import_snapshots"]

_MARK = codes(MarkKind)


def import_snapshots(paths: Sequence[Path], options: Options) -> Path:
    """Make a run of torch memory snapshots.

    Args:
        paths: the snapshots; the first one becomes rank 0.
        options: where the run goes.

    Returns:
        The run's folder.

    Raises:
        CaptureError: one of them is none, or is damaged; nothing is written then.
        OutputExistsError: the folder is already there.
    """
    ranks = [_convert(path, rank, len(paths)) for rank, path in enumerate(paths)]
    run = create_run(options, command=())
    for rank, each in enumerate(ranks):
        writer = RankWriter(run / f"rank-{rank:05d}", each.header)
        for table, columns in each.columns.items():
            writer.write(table, make_batch(table, columns))
        writer.close(events=len(each.columns["events"][0]), ended_ns=time_ns())
    return run


@dataclass(frozen=True)
class _Rank:
    """What goes to disk; the snapshot itself, which is many times as large, is gone by then."""

    header: dict[str, Any]
    columns: dict[str, Sequence[Any]]
    """Of each stream, in the order in which they are written."""


def _convert(path: Path, rank: int, world_size: int) -> _Rank:
    snapshot = parse_snapshot(read_snapshot(path), str(path))
    names = Names()
    evidence = read_stacks(snapshot.stacks)
    stacks = snapshot.stacks.write(names)
    devices = [
        ImportedDevice(told, number, snapshot, evidence, stacks, names)
        for number, told in enumerate(snapshot.devices)
    ]
    started_ns = min(each.start_ns for each in devices)
    ended_ns = max(each.end_ns for each in devices)
    # Phases are those of a rank, not of each device; the busiest one tells most of them.
    busiest = max(devices, key=lambda each: each.entries)
    marks = [
        (started_ns, _MARK["recording_on"], -1, sum(d.census_bytes for d in devices)),
        *busiest.phase_marks(names),
        *(each.total_mark() for each in devices),
        (ended_ns, _MARK["recording_off"], -1, 0),
    ]
    has_history = any(each.entries for each in devices)
    header = {
        "rank": rank,
        "world_size": world_size,
        "source": snapshot.device_type,
        "devices": [f"{snapshot.device_type}:{told.index}" for told in snapshot.devices],
        "started_ns": started_ns,
        # A list of blocks shows no training; but then there is no rank that shows more.
        "trains": True,
        "torch": "",
        "problems": _problems(devices),
        "notes": _notes(path.name, snapshot, has_history=has_history),
        "allocator": snapshot.settings,
        "imported": True,
    }
    columns: dict[str, Sequence[Any]] = {
        "names": _transposed(names.pending, "names"),
        "marks": _transposed(marks, "marks"),
        "tags": [np.concatenate(parts) for parts in zip(*(d.tags for d in devices), strict=True)],
        "events": [
            np.concatenate([each.events[name] for each in devices])
            for name in SCHEMAS["events"].names
        ],
    }
    return _Rank(header, columns)


def _transposed(rows: Sequence[tuple[Any, ...]], table: str) -> Sequence[Any]:
    return list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMAS[table].names)


def _problems(devices: Sequence[ImportedDevice]) -> list[str]:
    count = sum(each.mismatches for each in devices)
    if not count:
        return []
    return [
        f"{count} entries of the snapshot do not fit what its allocator is known to hold; sizes of some "
        "blocks may be off by their rounding"
    ]


def _notes(name: str, snapshot: Snapshot, *, has_history: bool) -> list[str]:
    notes = [
        f"imported from {name}: phases and categories are inferred from stacks, lifetimes and sizes"
    ]
    if snapshot.lacks_times:
        notes.append("the snapshot tells no times: its entries are a microsecond apart")
    if not has_history:
        notes.append("it holds no history, only what was allocated at its end")
    elif len(snapshot.stacks.known) == 1:
        notes.append("it holds no stacks, which tell most of what blocks are for")
    return notes
