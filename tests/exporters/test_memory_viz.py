"""Torch memory snapshots: read by torch's own tools, by what its viewer does, and by `memlens import`."""

from __future__ import annotations

import pickle
import pickletools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.support.small_runs import cuda_run, hostile_run, paused_run, two_ranks
from torch.cuda import _memory_viz

import memlens
from memlens.capture import Capture
from memlens.exporters import export
from memlens.importing.convert import import_snapshots
from memlens.options import Options

UNDERSTOOD = {
    "PROTO", "FRAME", "STOP", "MEMOIZE", "BINGET", "LONG_BINGET", "MARK", "NONE", "NEWFALSE",
    "NEWTRUE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE",
    "BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
"""Opcodes of pickle that the viewer's own unpickler knows."""

Snapshot = dict[str, Any]


def exported(capture: Capture, folder: Path) -> tuple[Path, Snapshot]:
    path = export(capture, "memory-viz", folder / "snapshot.pickle")
    content: Snapshot = pickle.loads(path.read_bytes())
    return path, content


def timeline_of(snapshot: Snapshot, device: int) -> tuple[list[int], list[Counter[str]]]:
    """What the viewer's timeline adds up to, entry by entry, in all and by category."""
    alive: dict[int, tuple[int, str]] = {}
    totals, categories = [], []
    total, held = 0, Counter[str]()
    for entry in snapshot["device_traces"][device]:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = entry["size"], entry["category"]
            total += entry["size"]
            held[entry["category"]] += entry["size"]
        elif entry["action"] == "free_completed":
            size, category = alive.pop(entry["addr"])
            assert size == entry["size"]
            total -= size
            held[category] -= size
        totals.append(total)
        categories.append(held.copy())
    return totals, categories


def test_totals_and_categories_are_the_captures(any_run: Capture, tmp_path: Path) -> None:
    _, snapshot = exported(any_run, tmp_path)
    assert len(snapshot["device_traces"]) == len(any_run.ranks)
    for device, rank in enumerate(any_run.ranks):
        totals, categories = timeline_of(snapshot, device)
        peak = rank.peak()
        assert max(totals, default=0) == peak.allocated_bytes
        if not totals:
            continue
        assert +categories[totals.index(max(totals))] == {
            category.value: size for category, size in peak.categories.items() if size
        }
        assert totals[-1] == rank.timeline().allocated_bytes[-1]
        times = [entry["time_us"] for entry in snapshot["device_traces"][device]]
        assert times[-1] <= int(rank.last_event_ns or 0) // 1000
        assert times == sorted(times)


def test_the_viewers_unpickler_reads_it(any_run: Capture, tmp_path: Path) -> None:
    path, _ = exported(any_run, tmp_path)
    used = {}
    for opcode, argument, _ in pickletools.genops(path.read_bytes()):
        used[opcode.name] = argument
    assert set(used) <= UNDERSTOOD
    assert used["PROTO"] == 4


def test_there_is_a_category_unknown(any_run: Capture, tmp_path: Path) -> None:
    """Without one the viewer stops, once there are any."""
    _, snapshot = exported(any_run, tmp_path)
    entries = [entry for trace in snapshot["device_traces"] for entry in trace]
    named = list(dict.fromkeys(entry["category"] for entry in entries if "category" in entry))
    assert not named or named[-1] == "unknown"


def test_going_back_every_block_lies_in_a_segment(any_run: Capture, tmp_path: Path) -> None:
    """As the viewer's state history does it: from the segments at the end, entry by entry."""
    _, snapshot = exported(any_run, tmp_path)
    for device, rank in enumerate(any_run.ranks):
        segments: dict[int, int] = {}
        alive: dict[int, int] = {}
        for segment in snapshot["segments"]:
            if segment["device"] == device:
                segments[segment["address"]] = segment["address"] + segment["total_size"]
                for block in segment["blocks"]:
                    if block["state"] == "active_allocated":
                        alive[block["address"]] = block["size"]
        reserved = [sum(end - start for start, end in segments.items())]
        if rank.reserved_peak_bytes is not None:
            end = rank.slack_at(2**62)
            assert end is not None
            assert reserved[0] == end.reserved_bytes
        for entry in reversed(snapshot["device_traces"][device]):
            address, size = entry["addr"], entry["size"]
            match entry["action"]:
                case "free_completed":
                    alive[address] = size
                case "free_requested":
                    assert address in alive
                case "alloc":
                    del alive[address]
                case "segment_alloc":
                    assert segments.pop(address) == address + size
                case "segment_free":
                    segments[address] = address + size
                case "segment_map":
                    # It had become one with its neighbour.
                    start = next(s for s, e in segments.items() if s <= address < e)
                    assert segments[start] == address + size
                    segments[start] = address
                case "segment_unmap":
                    start = next(s for s, e in segments.items() if e == address)
                    segments[start] = address + size
            reserved.append(sum(end - start for start, end in segments.items()))
            for place, taken in alive.items():
                assert any(
                    start <= place and place + taken <= end for start, end in segments.items()
                )
        assert not alive
        if rank.reserved_peak_bytes is not None:
            assert max(reserved) == rank.reserved_peak_bytes


@pytest.mark.filterwarnings("ignore:.*fork")
def test_torchs_own_tools_read_it(any_run: Capture, tmp_path: Path) -> None:
    _, snapshot = exported(any_run, tmp_path)
    summary = _memory_viz.segsum(snapshot)  # which checks that all sizes sum up
    assert f"segments: {len(snapshot['segments'])}" in summary
    text = _memory_viz.trace(snapshot)
    allocations = [each for each in re.findall(r"^\w+ = (\w+)\[", text, re.MULTILINE)]
    assert len(allocations) == sum(
        int((rank.blocks.size_bytes > 0).sum()) for rank in any_run.ranks
    )
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        page = plot(snapshot)
        assert "MemoryViz.js" in page


def test_the_command_line_reads_it(tmp_path: Path) -> None:
    path, _ = exported(cuda_run(tmp_path / "run"), tmp_path)
    for command in ("trace_plot", "segment_plot"):
        page = tmp_path / f"{command}.html"
        subprocess.run(
            [sys.executable, "-m", "torch.cuda._memory_viz", command, str(path), "-o", str(page)],
            check=True,
            capture_output=True,
        )
        assert "MemoryViz.js" in page.read_text()


@pytest.mark.parametrize("make", [cuda_run, paused_run])
def test_memlens_import_makes_the_same_run_of_it(make: Any, tmp_path: Path) -> None:
    capture = make(tmp_path / "run")
    path, _ = exported(capture, tmp_path)
    again = memlens.load(import_snapshots([path], Options(out=tmp_path / "again")))
    assert len(again.ranks) == len(capture.ranks)
    for one, other in zip(capture.ranks, again.ranks, strict=True):
        assert other.peak().allocated_bytes == one.peak().allocated_bytes
        assert other.reserved_peak_bytes == one.reserved_peak_bytes


def test_blocks_say_where_they_are_from(tmp_path: Path) -> None:
    capture = two_ranks(tmp_path / "run")
    _, snapshot = exported(capture, tmp_path)
    (rank, _) = capture.ranks
    trace = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"]
    for entry, number in zip(trace, range(len(rank.blocks.first)), strict=True):
        block = rank.allocation(number)
        assert entry["addr"] == block.address
        assert entry["time_us"] == block.alloc_ns // 1000
        assert [(f["name"], f["filename"], f["line"]) for f in entry["frames"]] == [
            (frame.function, frame.file, frame.line) for frame in reversed(block.stack)
        ]
        expected = {
            "name": block.name,
            "module": block.module,
            "phase": block.phase.value,
            "step": block.step,
        }
        assert entry["user_metadata"] == {key: v for key, v in expected.items() if v != ""}
    # Blocks from one place share one list of frames, and those that mean the same one text.
    assert len({id(entry["frames"]) for entry in trace}) < len(trace) / 2
    assert len({id(entry["user_metadata"]) for entry in trace}) < len(trace)


def test_of_too_many_blocks_the_largest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlens.exporters.memory_viz.MOST_BLOCKS", 200)
    capture = two_ranks(tmp_path / "run")
    _, snapshot = exported(capture, tmp_path)
    for device, rank in enumerate(capture.ranks):
        trace = snapshot["device_traces"][device]
        sizes = [entry["size"] for entry in trace if entry["action"] == "alloc"]
        assert sorted(sizes) == sorted(rank.blocks.size_bytes.tolist())[-100:]
        timeline_of(snapshot, device)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    _, snapshot = exported(hostile_run(tmp_path / "run"), tmp_path)
    entry = next(e for e in snapshot["device_traces"][0] if e["action"] == "alloc")
    texts = [entry["user_metadata"]["name"], entry["frames"][0]["name"]]
    assert all("<script>" in text and "\\x1b" in text for text in texts)
    assert not any(char in text for text in texts for char in "\n\x1b\u202e")
