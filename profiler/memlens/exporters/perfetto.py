"""A trace for https://ui.perfetto.dev: levels by category, and what the job did, rank by rank.

Each rank is a process, with a counter `allocated`, one for each category that it ever holds, and
`reserved` where its allocator takes memory in advance; with threads for steps, phases and modules; and
with an instant at its peak.

It is JSON and not Perfetto's own protocol buffers: that needs no package, writes faster, and packed it
is as small. Counters have one series each, since readers do not agree on what a missing one means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memlens.answers import Int64Array
from memlens.exporters.chrome_trace import TraceFile
from memlens.exporters.rank_history import modules_of, phases_of, reserved_of
from memlens.exporters.rank_names import rank_title
from memlens.palette import label
from memlens.report.view import choose_ranks, command_line
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture

__all__ = ["export"]

MOST_POINTS = 4_200_000
"""Of a counter, all ranks together, and a quarter of that for one: a rank with more events is thinned
out, and its peak stays."""

_THREADS = ("steps", "phases", "modules")


def export(capture: Capture, out: Path) -> None:
    """Write a capture as one file."""
    ranks = choose_ranks(capture, None)
    origin_ns = min(int(rank.header["started_ns"]) for rank in ranks)
    about = {
        "displayTimeUnit": "ms",
        "otherData": {
            "run": capture.info.name.encode("utf-8", "replace").decode(),
            "command": command_line(capture.info),
            "origin_unix_ns": str(origin_ns),
            "memlens": capture.info.memlens_version,
        },
    }
    most = MOST_POINTS // max(len(ranks), 4)
    with TraceFile(out, about, origin_ns) as trace:
        for number, rank in enumerate(ranks):
            # To some readers a thread's number says which process it is of, so none is used twice.
            pid = 10 * (number + 1)
            tids = range(pid + 1, pid + 1 + len(_THREADS))
            trace.name(pid, rank_title(rank, ranks), number, dict(zip(tids, _THREADS, strict=True)))
            _write_levels(trace, pid, rank, most)
            _write_work(trace, pid, rank)
            rank.release()


def _write_levels(trace: TraceFile, pid: int, rank: RankCapture, most: int) -> None:
    timeline = rank.timeline(max_points=most)
    time_ns = timeline.time_ns
    trace.counter(pid, "allocated", _changes(time_ns, timeline.allocated_bytes))
    for category, level_bytes in timeline.categories.items():
        trace.counter(pid, label(category), _changes(time_ns, level_bytes))
    reserved = reserved_of(rank)
    if reserved is not None:
        trace.counter(pid, "reserved", _changes(*reserved))


def _changes(time_ns: Int64Array, level_bytes: Int64Array) -> Iterator[tuple[int, int]]:
    """Times and levels, without those that are as before; nothing for what is always zero."""
    changed = np.flatnonzero(np.diff(level_bytes, prepend=0))
    if len(changed):  # some viewers draw a level until its last sample only
        changed = np.union1d(changed, len(level_bytes) - 1)
    yield from zip(time_ns[changed].tolist(), level_bytes[changed].tolist(), strict=True)


def _write_work(trace: TraceFile, pid: int, rank: RankCapture) -> None:
    steps, phases, modules = range(pid + 1, pid + 1 + len(_THREADS))
    for step in rank.steps():
        args = {"peak_bytes": step.peak_bytes, "end_bytes": step.end_bytes}
        trace.slice(pid, steps, f"step {step.step}", step.start_ns, step.end_ns, args)
    for phase in phases_of(rank):
        trace.slice(pid, phases, phase.name, phase.start_ns, phase.end_ns)
    for time_ns, module in modules_of(rank):
        if module:
            trace.begin(pid, modules, module, time_ns)
        else:
            trace.end(pid, modules, time_ns)
    peak = rank.peak()
    if peak.allocated_bytes:
        name = f"peak {format_bytes(peak.allocated_bytes)}"
        held = {label(category): size for category, size in peak.categories.items() if size}
        trace.instant(pid, steps, name, peak.time_ns, {"allocated": peak.allocated_bytes, **held})
