"""Plain data that makes no sense, or is made to take for ever."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

import memlens
from memlens.cli import _exit_code
from memlens.errors import CaptureError
from memlens.importing.convert import import_snapshots
from memlens.options import Options

BLOCK = {"size": 512, "requested_size": 500, "state": "active_allocated", "frames": []}
FRAME = {"name": "f", "filename": "train.py", "line": 1}
ENTRY = {
    "action": "alloc", "addr": 1 << 30, "size": 512, "stream": 0, "time_us": 1, "frames": [],
}  # fmt: skip


def segment(*blocks: dict[str, Any], address: int = 1 << 30) -> dict[str, Any]:
    return {
        "device": 0,
        "address": address,
        "total_size": sum(block["size"] for block in blocks),
        "stream": 0,
        "segment_type": "large",
        "blocks": list(blocks),
    }


def self_referring() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    settings["a"] = settings
    return settings


REFUSED = {
    "one list of blocks, named very often": (
        {"segments": [segment(BLOCK) | {"blocks": [BLOCK] * 20_000}] * 20_000},
        r"segments\[0\].total_size|blocks is there more than once",
    ),
    "one history, named very often": (
        {"segments": [], "device_traces": [[ENTRY] * 50_000] * 50_000},
        "device_traces.1. is there more than once",
    ),
    "more devices than there are": (
        {"segments": [], "device_traces": [[]] * 200 + [[ENTRY]]},
        "device_traces is 200",
    ),
    "settings that hold themselves": (
        {"segments": [segment(BLOCK)], "allocator_settings": self_referring()},
        "allocator_settings",
    ),
    "settings with numbers for names": (
        {"segments": [segment(BLOCK)], "allocator_settings": {1: 2, "a": 1}},
        "named by texts",
    ),
    "segments that overlap": (
        {"segments": [segment(BLOCK), segment(BLOCK)]},
        "apart from each other",
    ),
    "a state that torch does not know": (
        {"segments": [segment(BLOCK | {"state": "lost"})]},
        "state is 'lost', not one of",
    ),
    "a time before the epoch": (
        {"segments": [segment(BLOCK)], "device_traces": [[ENTRY | {"time_us": -5}]]},
        "time_us is -5",
    ),
    "a frame without a line": (
        {"segments": [segment(BLOCK | {"frames": [{"name": "f", "filename": "a.py"}]})]},
        r"segments\[0\].blocks\[0\].frames is a list, not a stack",
    ),
    "more than there is": (
        {"segments": [], "device_traces": [[ENTRY | {"size": 2**41}] * 2**20]},
        "more bytes than there are",
    ),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(tmp_path: Path, content: object, words: str) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(content))
    began = time.monotonic()
    with pytest.raises(CaptureError, match=words) as caught:
        import_snapshots([tmp_path / "a.pickle"], Options(out=tmp_path / "run"))
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def imported(folder: Path, content: object) -> memlens.Capture:
    (folder / "a.pickle").write_bytes(pickle.dumps(content))
    assert _exit_code(["import", str(folder / "a.pickle"), "--out", str(folder / "run")]) == 0
    assert _exit_code(["report", str(folder / "run")]) == 0
    return memlens.load(folder / "run")


def test_one_stack_that_is_named_very_often(tmp_path: Path) -> None:
    stack = [FRAME] * 50_000
    entries = [ENTRY | {"frames": stack, "addr": number << 20} for number in range(5_000)]
    began = time.monotonic()
    imported(tmp_path, {"segments": [], "device_traces": [entries]})
    assert time.monotonic() - began < 10


def test_texts_that_have_no_bytes(tmp_path: Path) -> None:
    frames = [FRAME | {"name": "half \ud800 of a pair"}]
    (rank,) = imported(tmp_path, {"segments": [segment(BLOCK | {"frames": frames})]}).ranks
    assert rank.allocations_at(top=None)[0].stack[0].function == "half ? of a pair"


def test_entries_that_do_not_fit_are_told(tmp_path: Path) -> None:
    content = {"segments": [segment(BLOCK)], "device_traces": [[ENTRY, ENTRY | {"time_us": 2}]]}
    (rank,) = imported(tmp_path, content).ranks
    assert any("do not fit" in problem for problem in rank.coverage.problems)
    assert not rank.coverage.complete


@pytest.mark.parametrize("state", ["active_pending_free", "active_awaiting_free"])
def test_a_block_that_waits_for_another_stream_is_not_allocated(tmp_path: Path, state: str) -> None:
    content = {"segments": [segment(BLOCK, BLOCK | {"state": state})]}
    (rank,) = imported(tmp_path, content).ranks
    assert sum(rank.categories_at(2**62 - 1).values()) == 512
    assert rank.coverage.witness_difference_bytes == 0
    assert rank.coverage.uncovered_bytes == 0


def test_running_out_of_memory_is_kept_however_much_was_asked_for(tmp_path: Path) -> None:
    oom = {"action": "oom", "device_free": 5, "size": 10**14, "stream": 0, "time_us": 7}
    capture = imported(tmp_path, {"segments": [segment(BLOCK)], "device_traces": [[oom]]})
    assert capture.ranks[0].peak().allocated_bytes == 512
    assert capture.ranks[0].coverage.problems == ()


def test_addresses_of_any_device(tmp_path: Path) -> None:
    address = 0xFF00_FFFF_FFE0_0000  # of Intel's
    frames = [{"name": "at::xpu::getCurrentXPUStream(int)", "filename": "??", "line": 0}]
    content = {"segments": [segment(BLOCK | {"frames": frames}, address=address)]}
    capture = imported(tmp_path, content)
    assert capture.ranks[0].allocations_at(top=None)[0].address == address
    assert capture.info.source == "xpu"
    assert capture.ranks[0].device == "xpu:0"


def test_what_the_rank_says_of_itself(tmp_path: Path) -> None:
    settings = {"expandable_segments": False, "max_split_size": -1}
    imported(tmp_path, {"segments": [segment(BLOCK)], "allocator_settings": settings})
    header = json.loads((tmp_path / "run" / "rank-00000" / "rank.json").read_text())
    assert header["imported"] is True
    assert header["allocator"] == settings
    assert header["source"] == "cuda"
    assert header["devices"] == ["cuda:0"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["command"] == []
