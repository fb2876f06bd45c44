"""One device of a snapshot becomes columns: events with the size of each block, tags and marks."""

from __future__ import annotations

from time import time_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator.follow import as_census, follow
from memlens.allocator.rewind import starting_state
from memlens.allocator.settings import AllocatorSettings
from memlens.attribution.lifetimes import pair
from memlens.disk.format import codes
from memlens.events import Action, Category, Certainty, MarkKind, NameKind
from memlens.importing.evidence import Evidence
from memlens.importing.infer import infer
from memlens.importing.made import Made
from memlens.importing.snapshot import DeviceSnapshot, Snapshot
from memlens.importing.stacks import Frame, backward_name, job_frame
from memlens.importing.timeline import FOREVER, Run, Stretches, Timeline, runs_of, step_ends
from memlens.recording.names import Names
from memlens.sources.cuda_trace import SEGMENT_ACTIONS, Trace

__all__ = ["ImportedDevice"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
Mark = tuple[int, int, int, int]

_MARK = codes(MarkKind)
_ACTION = codes(Action)
_CATEGORY = codes(Category)
_INFERRED = codes(Certainty)["inferred"]
_MARKED = {
    Evidence.FORWARD: "module",
    Evidence.BACKWARD: "backward",
    Evidence.OPTIMIZER: "optimizer",
}


class ImportedDevice:
    """What is to be written of one device.

    Args:
        told: the device's part of the snapshot.
        number: its position in the rank's list.
        snapshot: all of it.
        evidence: what each stack says.
        stacks: which number each stack has on disk.
        names: where texts are numbered.
    """

    def __init__(
        self,
        told: DeviceSnapshot,
        number: int,
        snapshot: Snapshot,
        evidence: list[Evidence],
        stacks: list[int],
        names: Names,
    ) -> None:
        self._number = number
        self._evidence = evidence
        self._stacks = snapshot.stacks
        trace = Trace(told.entries).without_empty_waits()
        self.entries = len(trace.entries)
        self.start_ns, self.end_ns = _straighten(trace)
        settings = AllocatorSettings.from_snapshot(snapshot.settings)
        history = _history(trace, number)
        census = as_census(*starting_state(history, told.segments, settings), self.start_ns)
        self._early = len(census["action"])
        self.events = {name: np.concatenate([census[name], history[name]]) for name in census}
        self.events["device"][:] = number
        followed = follow(self.events, settings)
        self.mismatches = followed.mismatches
        self.events["allocated_bytes"] = followed.allocated_bytes
        self._blocks = pair(self.events, np.array([self.start_ns]), np.empty(0, np.int64))
        self._stack = self._stack_of_rows(told, trace)
        self.events["stack"] = np.array(stacks, np.int32)[self._stack]
        # Annotations are of the whole process; what is said of another device is not about this one.
        self._annotations = [a for a in snapshot.annotations if a.device in (told.index, -1)]
        is_census = self.events["action"] == _ACTION["census"]
        self.census_bytes = int(self.events["allocated_bytes"][is_census].sum())
        self._bytes_at_end = _bytes_at_end(told)
        self._made: list[Made] = []
        self._conclude()
        self.tags = self._tags(names)

    def _stack_of_rows(self, told: DeviceSnapshot, trace: Trace) -> Array:
        """Our number of each row's stack; for what was there at the end, the list of blocks has it."""
        at_end = {
            block["address"]: block["stack"]
            for segment in told.segments
            for block in segment["blocks"]
            if block["state"] != "inactive"
        }
        stack = np.zeros(len(self.events["action"]), np.int64)
        stack[self._early :] = [entry["stack"] for entry in trace.entries]
        lasts = self._blocks.free_ns == FOREVER
        rows = self._blocks.row[self._blocks.first[lasts & self._blocks.preexisting]]
        stack[rows] = [at_end.get(each, 0) for each in self.events["address"][rows].tolist()]
        return stack

    # -- conclusions ---------------------------------------------------------------------------

    def _conclude(self) -> None:
        blocks, evidence = self._blocks, self._evidence
        rows = blocks.row[blocks.first]
        ends = blocks.last < len(blocks.row)
        freed_by = np.zeros(len(rows), np.int64)
        zeroed = self._stretches("Optimizer.zero_grad#")
        freed_by[ends] = self._stack[blocks.row[blocks.last[ends]]]
        for alloc, free, size, row, stack, last in zip(
            blocks.alloc_ns.tolist(),
            blocks.free_ns.tolist(),
            blocks.requested_bytes.tolist(),
            rows.tolist(),
            self._stack[rows].tolist(),
            freed_by.tolist(),
            strict=True,
        ):
            is_early = row < self._early
            by_stack = evidence[last] if last else None
            self._made.append(
                Made(
                    alloc_ns=alloc,
                    free_ns=free,
                    requested_bytes=size,
                    evidence=Evidence.NOTHING if is_early and not stack else evidence[stack],
                    is_early=is_early,
                    frames=self._stacks.known[stack],
                    freed_by=Evidence.ZEROING if free in zeroed else by_stack,
                )
            )
        self._steps = self._stretches("Optimizer.step#")
        made = [(each.alloc_ns, each.evidence) for each in self._made if not each.is_early]
        if any(what is Evidence.STEP_IN_BACKWARD for _, what in made):  # they interrupt nothing
            self.runs = runs_of(made, Stretches(()))
            backwards = [run for run in self.runs if run.what is Evidence.BACKWARD]
            self._steps = Stretches((run.end_ns, run.end_ns) for run in backwards)
        else:
            self.runs = runs_of(made, self._steps)
        infer(self._made, Timeline(self.runs), self._steps)

    def _stretches(self, prefix: str) -> Stretches:
        """Annotations of a name, as far as they are of the time that the history is of."""
        return Stretches(
            (max(each.start_us * 1000, self.start_ns + 1), each.end_us * 1000 + 999)
            for each in self._annotations
            if each.name.startswith(prefix) and each.end_us * 1000 > self.start_ns
        )

    def _tags(self, names: Names) -> list[Array]:
        """One for each block that outlives its own beginning, as columns in the order of the schema."""
        blocks = self._blocks
        texts = [_made_by(frames) for frames in self._stacks.known]
        stack = self._stack[blocks.row[blocks.first]]
        used = {number: texts[number] for number in np.unique(stack).tolist() if texts[number]}
        numbers = np.full(len(texts), -1, np.int32)
        for number, text in used.items():
            numbers[number] = names.intern(NameKind.TENSOR, text)
        category = np.array([_CATEGORY[each.category.value] for each in self._made], np.int8)
        chosen = blocks.free_ns > blocks.alloc_ns  # what waited for a stream ends as it begins
        count = int(np.count_nonzero(chosen))
        return [
            blocks.alloc_ns[chosen],
            np.full(count, self._number, np.int8),
            blocks.address[chosen],
            blocks.requested_bytes[chosen],
            category[chosen],
            np.full(count, _INFERRED, np.int8),
            numbers[stack[chosen]],
            np.full(count, -1, np.int32),
            np.zeros(count, np.int64),
        ]

    # -- marks ---------------------------------------------------------------------------------

    def total_mark(self) -> Mark:
        """The allocator's own count: by how much it grew, as the blocks at the end tell."""
        grown = self._bytes_at_end - self.census_bytes
        return self.end_ns - 1, _MARK["allocator_total"], self._number, grown

    def phase_marks(self, names: Names) -> list[Mark]:
        """What the job did when."""
        numbers = {
            Evidence.FORWARD: names.new(NameKind.MODULE, "", ""),
            Evidence.OPTIMIZER: names.new(NameKind.SCOPE, "optimizer", ""),
        }
        found: list[Mark] = []
        for run in self.runs:
            kind, number = _MARKED[run.what], numbers.get(run.what, -1)
            found.append((run.start_ns, _MARK[f"{kind}_enter"], number, 0))
            found.append((self._end_of(run), _MARK[f"{kind}_exit"], number, 1))
        zeroed = sorted(each.free_ns for each in self._made if each.freed_by is Evidence.ZEROING)
        for step, end in enumerate(step_ends(self.runs, self._steps, zeroed), 1):
            found.append((end - 1, _MARK["step"], -1, step))
        # Step marks behind the exits of their time: what is open ends with a step.
        return sorted(found, key=lambda mark: (mark[0], mark[1] == _MARK["step"]))

    def _end_of(self, run: Run) -> int:
        return max(run.start_ns, min(run.end_ns, self.end_ns) - 1)


def _bytes_at_end(told: DeviceSnapshot) -> int:
    return sum(
        block["size"]
        for segment in told.segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    )


def _straighten(trace: Trace) -> tuple[int, int]:
    """Give each entry a time of its own, in the allocator's order; returns when all began and ended."""
    time = trace.time_ns
    if not len(time):
        now = time_ns()
        return now, now + 1
    ascending = np.arange(len(time))
    trace.time_ns = np.maximum.accumulate(np.maximum(time, 1) - ascending) + ascending
    return int(trace.time_ns[0]) - 1, int(trace.time_ns[-1]) + 1


def _history(trace: Trace, number: int) -> Columns:
    count = len(trace.action)
    is_segment = np.isin(trace.action, SEGMENT_ACTIONS)
    return {
        "time_ns": trace.time_ns,
        "action": trace.action,
        "device": np.full(count, number, np.int8),
        "address": trace.address,
        "requested_bytes": trace.size_bytes,
        "allocated_bytes": np.where(is_segment, trace.size_bytes, 0),
        "stream": trace.stream,
        "stack": np.full(count, -1, np.int32),
    }


def _made_by(frames: tuple[Frame, ...]) -> str:
    """What to call a block, of which nothing but the stack is known."""
    frame = job_frame(frames)
    if frame is not None:
        file = frame.filename.replace("\\", "/").rpartition("/")[2]
        return f"made by {frame.name}, {file}:{frame.line}"
    node = backward_name(frames)
    return f"made by {node}" if node else ""
