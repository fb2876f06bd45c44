"""Small runs that exporters are tried on: real folders, read by `memlens.load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.large import make_capture
from tests.support.written_job import BACKWARD, FORWARD, MAIN, MAKING, MIB, STEP, ZERO, Job

import memlens
from memlens.capture import Capture
from memlens.disk.format import FORMAT_NAME, FORMAT_VERSION, codes, write_json
from memlens.disk.writer import RankWriter, make_batch
from memlens.events import Action, Category, Certainty, MarkKind, NameKind

__all__ = [
    "HOSTILE",
    "RUNS",
    "cuda_run",
    "empty_run",
    "hostile_run",
    "paused_run",
    "stepless_run",
    "two_ranks",
]

HOSTILE = "a;b \"c\" <script>alert('&')</script>\n\t\x1b[31m \u202e \\ {x} %s 7"
"""Everything that means something in one of the formats, and a number at its end."""
START_NS = 1_750_000_000_000_000_123

_CODE = codes(Action)
_ALLOC, _FREE = _CODE["alloc"], _CODE["free"]
_MODULE, _STACK, _TENSOR = (codes(NameKind)[kind] for kind in ("module", "stack", "tensor"))
_ON, _OFF, _ENTER, _EXIT = (
    codes(MarkKind)[kind]
    for kind in ("recording_on", "recording_off", "module_enter", "module_exit")
)
_WEIGHT, _DECLARED = codes(Category)["weight"], codes(Certainty)["declared"]


def two_ranks(folder: Path) -> Capture:
    """Two ranks on the CPU, several steps, stacks and modules."""
    make_capture(folder, events=3_000, ranks=2, layers=8)
    return memlens.load(folder)


def cuda_run(folder: Path) -> Capture:
    """Two devices of one process, under the model of CUDA's allocator: segments, streams, rounding."""
    job = Job(devices=2)
    for device in (0, 1):
        weights = job.malloc(MAKING, 3 * MIB, MIB + 5, device=device)
        for step in range(3):
            batch = job.malloc(MAIN, 1000 * (step + 1), device=device)
            kept = job.malloc(FORWARD, 4 * MIB + device, 30 * MIB, device=device)
            gradients = job.malloc(BACKWARD, 3 * MIB, MIB + 5, device=device)
            job.free(BACKWARD, kept, device=device)
            job.free(STEP, job.malloc(STEP, 3 * MIB, device=device), device=device)
            job.free(ZERO, [*gradients, *batch], device=device)
        job.free(MAIN, weights[:1], device=device)
    folder.mkdir()
    return job.imported(folder)


def hostile_run(folder: Path) -> Capture:
    """Every name is HOSTILE."""
    names = [
        (_MODULE, 0, -1, HOSTILE, HOSTILE),
        (_TENSOR, 0, -1, HOSTILE, ""),
        (_STACK, 0, -1, HOSTILE, f"{HOSTILE}:3"),
    ]
    marks = [(0, _ON, -1, 0), (1000, _ENTER, 0, 0), (9000, _EXIT, 0, 0)]
    tags = [(2500, 0, 64, 8, _WEIGHT, _DECLARED, 0, 0, 0)]
    events = [
        (2000, _ALLOC, 0, 64, 8, 8, 0, 0),
        (3000, _ALLOC, 0, 128, 100, 100, 0, 0),
        (4000, _FREE, 0, 64, 8, 8, 0, -1),
    ]
    return _write(folder, names, marks, tags, events)


def paused_run(folder: Path) -> Capture:
    """Recording paused, and memory was taken and given back meanwhile; segments can grow."""
    one, two, three = (at * 64 * MIB for at in (1, 2, 3))
    events = [
        (100, _CODE["segment_census"], 0, one, 4 * MIB, 4 * MIB, 0, -1),
        (100, _CODE["census"], 0, one, MIB, MIB, 0, -1),
        (900, _CODE["segment_map"], 0, one + 4 * MIB, 2 * MIB, 2 * MIB, 0, -1),
        (1000, _ALLOC, 0, one + MIB, 5 * MIB - 7, 5 * MIB, 0, -1),
        (2000, _CODE["segment_alloc"], 0, two, 8 * MIB, 8 * MIB, 7, -1),
        (2500, _ALLOC, 0, two, 8 * MIB, 8 * MIB, 7, -1),
        (8000, _CODE["segment_census"], 0, one, 6 * MIB, 6 * MIB, 0, -1),
        (8000, _CODE["segment_census"], 0, three, 2 * MIB, 2 * MIB, 0, -1),
        (8000, _CODE["census"], 0, one, MIB, MIB, 0, -1),
        (9000, _ALLOC, 0, three, MIB, MIB, 0, -1),
        (9500, _FREE, 0, one, MIB, MIB, 0, -1),
        (9600, _CODE["segment_unmap"], 0, one + 4 * MIB, 2 * MIB, 2 * MIB, 0, -1),
    ]
    marks = [(0, _ON, -1, MIB), (5000, _OFF, -1, 0), (8000, _ON, -1, MIB)]
    header = {
        "source": "cuda",
        "devices": ["cuda:0"],
        "allocator": {"expandable_segments": True},
    }
    return _write(folder, [], marks, [], events, header)


def stepless_run(folder: Path) -> Capture:
    """Blocks and nothing else: no step, no module, no stack, no tag; several events at one time."""
    events = [(5, _ALLOC, 0, 64 * at, 10 * at, 10 * at, 0, -1) for at in range(1, 8)]
    events += [(5, _FREE, 0, 64 * at, 10 * at, 10 * at, 0, -1) for at in (2, 3)]
    return _write(folder, [], [(0, _ON, -1, 0)], [], events)


def empty_run(folder: Path) -> Capture:
    """Nothing was allocated."""
    return _write(folder, [], [(0, _ON, -1, 0)], [], [])


RUNS = {
    "cpu": two_ranks,
    "cuda": cuda_run,
    "hostile": hostile_run,
    "paused": paused_run,
    "stepless": stepless_run,
    "empty": empty_run,
}


def _write(
    folder: Path,
    names: Sequence[tuple[Any, ...]],
    marks: Sequence[tuple[Any, ...]],
    tags: Sequence[tuple[Any, ...]],
    events: Sequence[tuple[Any, ...]],
    header: Mapping[str, Any] | None = None,
) -> Capture:
    """A run of these rows; times count from START_NS."""
    folder.mkdir()
    run = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "memlens": "0.1.0"}
    write_json(folder / "run.json", run | {"command": ["train.py"], "created_ns": START_NS})
    writer = RankWriter(
        folder / "rank-00000",
        {
            "rank": 0,
            "world_size": 1,
            "source": "cpu",
            "devices": ["cpu"],
            "started_ns": START_NS,
            "trains": True,
            "torch": "2.13.0",
            "problems": [],
            "notes": [],
            **(header or {}),
        },
    )
    if names:
        writer.write("names", make_batch("names", list(zip(*names, strict=True))))
    for table, rows in (("marks", marks), ("tags", tags), ("events", events)):
        if rows:
            timed = [(START_NS + row[0], *row[1:]) for row in rows]
            writer.write(table, make_batch(table, list(zip(*timed, strict=True))))
    writer.close(events=len(events), ended_ns=START_NS + 10_000)
    return memlens.load(folder)
