"""Makes a run of snapshots: one rank each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator.follow import as_census, follow
from memlens.allocator.rewind import starting_state
from memlens.allocator.settings import AllocatorSettings
from memlens.attribution.lifetimes import Lifetimes, pair
from memlens.disk.format import codes
from memlens.disk.runs import create_run
from memlens.disk.writer import RankWriter, make_batch
from memlens.events import Action, Category, Certainty, MarkKind, NameKind
from memlens.importing.evidence import Evidence, StackReader, is_python, job_frame
from memlens.importing.infer import FOREVER, Made, Run, infer, runs_of
from memlens.importing.pickles import read_snapshot
from memlens.importing.snapshot import DeviceSnapshot, Snapshot, parse_snapshot
from memlens.options import Options
from memlens.recording.names import Names
from memlens.sources.cuda_trace import SEGMENT_ACTIONS, Trace

__all__ = ["import_snapshots"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
_MARK = codes(MarkKind)
_CENSUS = codes(Action)["census"]
_CATEGORY = codes(Category)
_INFERRED = codes(Certainty)["inferred"]
_SKIPPED = (
    "torch::unwind",
    "torch::CapturedTraceback",
    "gather_with_cpp",
    "c10::",
    "at::detail::",
    "wrap_kernel_functor",
)
"""C++ frames of the recording, the allocator and the dispatcher: the same in every stack."""
MOST_NATIVE_FRAMES = 12
_BACKWARD = re.compile(r"autograd::generated::\w+::apply|autograd::(AccumulateGrad|CopySlices)")


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
    ready = []
    for path in paths:
        snapshot = parse_snapshot(read_snapshot(path), str(path))
        devices = [_Device(each, number, snapshot) for number, each in enumerate(snapshot.devices)]
        ready.append((path, snapshot, devices))
    run = create_run(options, command=())
    for rank, (path, snapshot, devices) in enumerate(ready):
        _write_rank(run, rank, len(paths), path, snapshot, devices)
    return run


def _write_rank(
    run: Path,
    rank: int,
    world_size: int,
    path: Path,
    snapshot: Snapshot,
    devices: list[_Device],
) -> None:
    notes = [
        f"imported from {path.name}: phases and categories are inferred from stacks, lifetimes and sizes"
    ]
    if snapshot.lacks_times:
        notes.append("the snapshot tells no times: its entries are a microsecond apart")
    if not any(each.trace.entries for each in devices):
        notes.append("it holds no history, only what was allocated at its end")
    started = min(each.start_ns for each in devices)
    writer = RankWriter(
        run / f"rank-{rank:05d}",
        {
            "rank": rank,
            "world_size": world_size,
            "source": "cuda",
            "devices": [f"cuda:{each.index}" for each in snapshot.devices],
            "started_ns": started,
            "trains": True,
            "torch": "",
            "problems": [],
            "notes": notes,
            "allocator": snapshot.settings,
            "imported": True,
        },
    )
    names = Names()
    marks = [(started, _MARK["recording_on"], -1, 0)]
    tags: list[tuple[int, ...]] = []
    for each in devices:
        each.name_stacks(names)
        each.conclude(names, tags)
        marks += each.marks(names, is_first=each is devices[0])
    marks.append((max(each.end_ns for each in devices), _MARK["recording_off"], -1, 0))
    rows = [each.rows for each in devices]
    events = [np.concatenate([part[name] for part in rows]) for name in rows[0]]
    writer.write("names", make_batch("names", list(zip(*names.pending, strict=True))))
    writer.write("marks", make_batch("marks", list(zip(*marks, strict=True))))
    if tags:
        writer.write("tags", make_batch("tags", list(zip(*tags, strict=True))))
    writer.write("events", make_batch("events", events))
    writer.close(events=len(events[0]), ended_ns=time_ns())


class _Device:
    """One device of a snapshot, on its way to columns."""

    def __init__(self, told: DeviceSnapshot, number: int, snapshot: Snapshot) -> None:
        self.told = told
        self.number = number
        self.trace = Trace(told.entries).without_empty_waits()
        settings = AllocatorSettings.from_snapshot(snapshot.settings)
        self.start_ns, self.end_ns = self._straighten()
        history = self._history()
        segments, blocks = starting_state(history, told.segments, settings)
        census = as_census(segments, blocks, self.start_ns)
        self.early = len(census["action"])
        columns = {name: np.concatenate([census[name], history[name]]) for name in census}
        columns["device"] = np.full(len(columns["action"]), number, np.int8)
        columns["allocated_bytes"] = follow(columns, settings).allocated_bytes
        self.columns: Columns = columns
        # Taken from device and stream of the whole process; those of others do not touch this one.
        self.annotations = [
            each for each in snapshot.annotations if each.device in (told.index, -1)
        ]
        self.blocks: Lifetimes = pair(columns, np.array([self.start_ns]), np.empty(0, np.int64))
        self.runs: list[Run] = []

    def _straighten(self) -> tuple[int, int]:
        """Give each entry a time of its own, in the allocator's order."""
        time = self.trace.time_ns
        if not len(time):
            now = time_ns()
            return now, now + 1
        time = time + 1000 * (time[0] == 0)  # a clock of its own, which began with the history
        ascending = np.arange(len(time))
        self.trace.time_ns = np.maximum.accumulate(time - ascending) + ascending
        return int(self.trace.time_ns[0]) - 1, int(self.trace.time_ns[-1]) + 1

    def _history(self) -> Columns:
        trace = self.trace
        is_segment = np.isin(trace.action, SEGMENT_ACTIONS)
        return {
            "time_ns": trace.time_ns,
            "action": trace.action,
            "device": np.full(len(trace.action), self.number, np.int8),
            "address": trace.address,
            "requested_bytes": trace.size_bytes,
            "allocated_bytes": np.where(is_segment, trace.size_bytes, 0),
            "stream": trace.stream,
            "stack": np.full(len(trace.action), -1, np.int32),
        }

    @property
    def rows(self) -> Columns:
        """Columns of events, in the order of the schema."""
        return self.columns

    def _frames(self) -> list[list[dict[str, Any]]]:
        """The stack of each row, innermost frame first."""
        of_blocks = {
            block["address"]: block["frames"]
            for segment in self.told.segments
            for block in segment["blocks"]
            if block["state"] != "inactive"
        }
        alive = dict(
            zip(
                self.blocks.row[self.blocks.first].tolist(),
                (self.blocks.free_ns == FOREVER).tolist(),
                strict=True,
            )
        )
        frames = [
            of_blocks.get(address, []) if alive.get(row) else []
            for row, address in enumerate(self.columns["address"][: self.early].tolist())
        ]
        return frames + [entry["frames"] for entry in self.trace.entries]

    def name_stacks(self, names: Names) -> None:
        """Number the stacks."""
        self.frames = self._frames()
        known: dict[tuple[int, ...], int] = {}
        for row, frames in enumerate(self.frames):
            if frames:
                key = tuple(map(id, frames))
                if key not in known:
                    known[key] = _number(frames, names)
                self.columns["stack"][row] = known[key]

    def conclude(self, names: Names, tags: list[tuple[int, ...]]) -> None:
        """Say what each block is for."""
        reader = StackReader(
            has_python=any(is_python(frame) for each in self.frames for frame in each[:64])
        )
        rows = self.blocks.row[self.blocks.first].tolist()
        made = [
            Made(
                alloc_ns=alloc,
                free_ns=free,
                requested_bytes=size,
                evidence=self._evidence(reader, row),
                is_early=row < self.early,
            )
            for alloc, free, size, row in zip(
                self.blocks.alloc_ns.tolist(),
                self.blocks.free_ns.tolist(),
                self.blocks.requested_bytes.tolist(),
                rows,
                strict=True,
            )
        ]
        self.runs = runs_of(made, self._stretches("Optimizer.step#"))
        categories = infer(made, self.runs, self._stretches("Optimizer.zero_grad#"))
        for row, each, category in zip(rows, made, categories, strict=True):
            frame = job_frame(self.frames[row])
            text = "" if frame is None else f"made by {frame['name']}, {_place(frame)}"
            tags.append(
                (
                    each.alloc_ns,
                    self.number,
                    int(self.columns["address"][row]),
                    each.requested_bytes,
                    _CATEGORY[category.value],
                    _INFERRED,
                    names.intern(NameKind.TENSOR, text) if text else -1,
                    -1,
                )
            )

    def _evidence(self, reader: StackReader, row: int) -> Evidence:
        frames = self.frames[row]
        return reader.read(frames) if frames or row >= self.early else Evidence.NOTHING

    def _stretches(self, prefix: str) -> list[tuple[int, int]]:
        return [
            (each.start_us * 1000, each.end_us * 1000 + 999)
            for each in self.annotations
            if each.name.startswith(prefix)
        ]

    def marks(self, names: Names, *, is_first: bool) -> list[tuple[int, int, int, int]]:
        """What the job did when (told by the first device), and the allocator's count at the end."""
        at_start = self.columns["allocated_bytes"][: self.early][
            self.columns["action"][: self.early] == _CENSUS
        ].sum()
        now = sum(
            block["size"]
            for segment in self.told.segments
            for block in segment["blocks"]
            if block["state"] == "active_allocated"
        )
        found = [(self.end_ns - 1, _MARK["allocator_total"], self.number, int(now - at_start))]
        if not is_first:
            return found
        module = names.new(NameKind.MODULE, "", "")
        scope = names.new(NameKind.SCOPE, "optimizer", "")
        step = 0
        for run in self.runs:
            kind, number = {
                Evidence.FORWARD: ("module", module),
                Evidence.BACKWARD: ("backward", -1),
                Evidence.OPTIMIZER: ("optimizer", scope),
            }.get(run.what, ("", -1))
            if not kind:
                continue
            end = min(run.end_ns, self.end_ns) - 1
            found.append((run.start_ns, _MARK[f"{kind}_enter"], number, 0))
            found.append((end, _MARK[f"{kind}_exit"], number, 1))
            if run.what is Evidence.OPTIMIZER and run.end_ns != FOREVER:
                step += 1
                found.append((end, _MARK["step"], -1, step))
        return found


def _number(frames: list[dict[str, Any]], names: Names) -> int:
    kept = [frame for frame in frames if is_python(frame)]
    if not kept:
        kept = [f for f in frames if not any(word in f["name"] for word in _SKIPPED)]
        # What of backward it was stands some frames out, behind kernels and their wrappers.
        named = [place for place, f in enumerate(kept) if _BACKWARD.search(f["name"])]
        kept = kept[named[0] if named else 0 :][:MOST_NATIVE_FRAMES]
    number = -1
    for frame in reversed(kept):
        number = names.frame(number, frame["name"], frame["filename"], frame["line"])
    return number


def _place(frame: dict[str, Any]) -> str:
    return f"{frame['filename'].rpartition('/')[2]}:{frame['line']}"
