"""Traces for Perfetto: JSON as Chrome's trace viewers read it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.small_runs import HOSTILE, RUNS, cuda_run, hostile_run, two_ranks

from memlens.capture import Capture
from memlens.events import Category
from memlens.exporters import export
from memlens.palette import label

Event = dict[str, Any]


def read(capture: Capture, folder: Path) -> tuple[Any, dict[int, list[Event]]]:
    """A trace, and its events by process."""
    path = export(capture, "perfetto", folder / "trace.json.gz")
    content = json.loads(gzip.decompress(path.read_bytes()))
    processes: dict[int, list[Event]] = defaultdict(list)
    for event in content["traceEvents"]:
        processes[event["pid"]].append(event)
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        assert event["ph"] == "E" or isinstance(event["name"], str)
    return content, processes


def meta(events: list[Event], name: str) -> dict[int, Any]:
    return {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == name}


def levels(events: list[Event]) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            ((unit, value),) = event["args"].items()
            assert unit == "bytes"
            found[event["name"]].append((event["ts"], value))
    return found


def microseconds(content: Any, time_ns: int) -> float:
    return (time_ns - int(content["otherData"]["origin_unix_ns"])) / 1000


def test_counters_are_the_captures_levels(any_run: Capture, tmp_path: Path) -> None:
    content, processes = read(any_run, tmp_path)
    assert len(processes) == len(any_run.ranks)
    for rank, events in zip(any_run.ranks, processes.values(), strict=True):
        timeline, found = rank.timeline(), levels(events)
        expected = {"allocated": timeline.allocated_bytes} | {
            label(category): values for category, values in timeline.categories.items()
        }
        for name, values in expected.items():
            changed = np.flatnonzero(np.diff(values, prepend=0)).tolist()
            if changed and changed[-1] != len(values) - 1:
                changed.append(len(values) - 1)  # so that a level is drawn to the end
            samples = found.get(name, [])
            assert [value for _, value in samples] == values[changed].tolist()
            assert [time for time, _ in samples] == pytest.approx(
                [microseconds(content, int(timeline.time_ns[at])) for at in changed], abs=1e-3
            )
        peak = rank.peak()
        assert max((value for _, value in found["allocated"]), default=0) == peak.allocated_bytes


def test_the_peak_is_marked_with_what_is_alive(any_run: Capture, tmp_path: Path) -> None:
    content, processes = read(any_run, tmp_path)
    for rank, events in zip(any_run.ranks, processes.values(), strict=True):
        peak = rank.peak()
        marks = [event for event in events if event["ph"] == "i"]
        assert len(marks) == bool(peak.allocated_bytes)
        for mark in marks:
            held = {label(key): size for key, size in peak.categories.items() if size}
            assert mark["args"] == {"allocated": peak.allocated_bytes, **held}
            assert mark["ts"] == pytest.approx(microseconds(content, peak.time_ns), abs=1e-3)


def test_reserved_memory_is_there_where_an_allocator_takes_it(tmp_path: Path) -> None:
    capture = cuda_run(tmp_path / "run")
    _, processes = read(capture, tmp_path)
    assert len(processes) == 2
    for rank, events in zip(capture.ranks, processes.values(), strict=True):
        values = [value for _, value in levels(events)["reserved"]]
        assert max(values) == rank.reserved_peak_bytes
        assert max(values) > rank.peak().allocated_bytes
        assert values[-1] == rank.slack_at(rank.last_event_ns).reserved_bytes  # type: ignore[union-attr]
    assert [*meta(processes[10], "process_name").values()] == ["rank 0, cuda:0"]


def test_steps_and_phases_cover_the_recording(tmp_path: Path) -> None:
    capture = two_ranks(tmp_path / "run")
    content, processes = read(capture, tmp_path)
    for rank, events in zip(capture.ranks, processes.values(), strict=True):
        threads = meta(events, "thread_name")
        slices: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            if event["ph"] == "X":
                slices[threads[event["tid"]]].append(event)
        steps = rank.steps()
        assert [each["name"] for each in slices["steps"]] == [f"step {s.step}" for s in steps]
        assert [each["args"]["peak_bytes"] for each in slices["steps"]] == [
            step.peak_bytes for step in steps
        ]
        first, last = int(rank.blocks.time_ns[0]), int(rank.blocks.time_ns[-1])
        now = microseconds(content, first)
        for each in slices["phases"]:
            assert each["ts"] == pytest.approx(now, abs=2e-3)  # both are rounded to a nanosecond
            now = each["ts"] + each["dur"]
            middle = int(content["otherData"]["origin_unix_ns"]) + int(
                (each["ts"] + each["dur"] / 2) * 1000
            )
            assert rank.place_at(middle).phase.value == each["name"]
        assert now == pytest.approx(microseconds(content, last), abs=2e-3)
        assert {each["name"] for each in slices["phases"]} >= {"forward", "backward", "optimizer"}


def test_modules_nest_as_their_names_do(tmp_path: Path) -> None:
    capture = two_ranks(tmp_path / "run")
    content, processes = read(capture, tmp_path)
    opened: list[tuple[str, float]] = []
    seen = 0
    origin_ns = int(content["otherData"]["origin_unix_ns"])
    for event in processes[10]:
        if event["ph"] == "B":
            assert not opened or event["name"].startswith(f"{opened[-1][0]}.")
            opened.append((event["name"], event["ts"]))
        elif event["ph"] == "E":
            name, since = opened.pop()
            middle = capture.ranks[0].place_at(origin_ns + round((since + event["ts"]) / 2 * 1000))
            assert middle.module == name or middle.module.startswith(f"{name}.")
            seen += 1
    assert not opened
    assert seen > 50


def test_ids_are_not_used_twice(tmp_path: Path) -> None:
    """To some readers a thread's number alone says which thread it is."""
    _, processes = read(two_ranks(tmp_path / "run"), tmp_path)
    threads = [meta(events, "thread_name") for events in processes.values()]
    assert len({*threads[0], *threads[1], *processes}) == 8
    assert [*meta(processes[20], "process_name").values()] == ["rank 1"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    _, processes = read(hostile_run(tmp_path / "run"), tmp_path)
    (name,) = {event["name"] for event in processes[10] if event["ph"] == "B"}
    assert name != HOSTILE
    assert name.startswith("a;b \"c\" <script>alert('&')</script>\\n\\t\\x1b[31m \\u202e")


def test_long_recordings_are_thinned_out_and_keep_their_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlens.exporters.perfetto.MOST_POINTS", 400)
    capture = two_ranks(tmp_path / "run")
    _, processes = read(capture, tmp_path)
    for rank, events in zip(capture.ranks, processes.values(), strict=True):
        found = levels(events)
        assert 50 < len(found["allocated"]) <= 102
        assert max(value for _, value in found["allocated"]) == rank.peak().allocated_bytes
        last = {name: values[-1][1] for name, values in found.items()}
        assert sum(last.get(label(category), 0) for category in Category) == last["allocated"]


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    capture = RUNS["stepless"](tmp_path / "run")
    files = [export(capture, "perfetto", tmp_path / f"{n}.json.gz") for n in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()
