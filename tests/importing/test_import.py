"""`memlens import` on snapshots that need no GPU: the allocator's model writes them."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.support.model_history import ModelHistory
from tests.support.training import assert_adds_up

import memlens
from memlens.cli import _exit_code
from memlens.events import Category

MIB = 2**20


def frame(name: str, filename: str, line: int = 1) -> dict[str, Any]:
    return {"name": name, "filename": filename, "line": line}


INIT = [frame("__init__", "/venv/torch/nn/modules/linear.py"), frame("main", "/job/train.py", 3)]
FORWARD = [
    frame("forward", "/job/net.py", 20),
    frame("_call_impl", "/venv/torch/nn/modules/module.py"),
    frame("main", "/job/train.py", 9),
]
LOSS = [frame("cross_entropy", "/venv/torch/nn/functional.py"), frame("main", "/job/train.py", 10)]
BACKWARD: list[dict[str, Any]] = []
STEP = [
    frame("step", "/venv/torch/optim/adamw.py"),
    frame("wrapper", "/venv/torch/optim/optimizer.py"),
]


def training(steps: int = 2, ring: int | None = None, settings: str = "") -> ModelHistory:
    """Two weights under AdamW, as an allocator sees it."""
    history = ModelHistory(1, settings, ring)
    allocator = history.allocators[0]

    def make(frames: list[dict[str, Any]], size: int) -> int:
        allocator.frames = frames
        return allocator.malloc(size)

    sizes = (3 * MIB, 5 * MIB + 12)
    for size in sizes:
        make(INIT, size)
    states: list[int] = []
    for step in range(steps):
        kept = [make(FORWARD, 7 * MIB), make(FORWARD, 2 * MIB)]
        passing = make(FORWARD, MIB)
        allocator.free(passing)
        loss = make(LOSS, 400)
        gradients = []
        for size, activation in zip(sizes, reversed(kept), strict=True):
            scratch = make(BACKWARD, 9 * MIB)
            gradients.append(make(BACKWARD, size))
            allocator.free(scratch)
            allocator.free(activation)
        if step == 0:
            states = [make(STEP, size) for size in sizes for _ in range(2)]
        scratch = make(STEP, sum(sizes))
        allocator.free(scratch)
        allocator.frames = [frame("main", "/job/train.py", 12)]
        for gradient in gradients:
            allocator.free(gradient)
        allocator.free(loss)
    assert len(states) == 4
    return history


def dump(folder: Path, content: object, name: str = "snapshot.pickle", protocol: int = 4) -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def run(*arguments: object) -> int:
    return _exit_code(list(map(str, arguments)))


def imported(folder: Path, *paths: Path) -> memlens.Capture:
    assert run("import", *paths, "--out", folder / "run") == 0
    return memlens.load(folder / "run")


@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "roundup_power2_divisions:4"])
def test_a_training_in_its_categories(tmp_path: Path, settings: str) -> None:
    history = training(settings=settings)
    (rank,) = imported(tmp_path, dump(tmp_path, history.snapshot())).ranks
    assert_adds_up(rank)
    assert rank.coverage.problems == ()
    assert rank.coverage.witness_difference_bytes == 0
    allocator = history.allocators[0]
    assert rank.peak().allocated_bytes == allocator.peak_allocated_bytes
    assert rank.reserved_peak_bytes == allocator.peak_reserved_bytes
    assert sum(rank.categories_at(2**62 - 1).values()) == allocator.allocated_bytes
    count = {category: 0 for category in Category}
    for number in range(len(rank.blocks.first)):
        count[rank.allocation(number).category] += 1
    assert {category.value: number for category, number in count.items() if number} == {
        "weight": 2,
        "activation": 6,  # two per step and the loss
        "temporary": 6,  # one in each forward, two in each backward
        "gradient": 4,
        "optimizer_state": 4,
        "optimizer_temporary": 2,
    }
    assert [step.step for step in rank.steps()][:1] == [0]


def test_a_ring_that_began_late(tmp_path: Path) -> None:
    history = training(steps=4, ring=30)
    (rank,) = imported(tmp_path, dump(tmp_path, history.snapshot())).ranks
    assert_adds_up(rank)
    assert rank.coverage.problems == ()
    assert rank.coverage.witness_difference_bytes == 0
    end = rank.categories_at(2**62 - 1)
    assert sum(end.values()) == history.allocators[0].allocated_bytes
    assert end[Category.WEIGHT] > 0
    assert end[Category.UNKNOWN] == 0


def test_a_clock_that_began_with_the_history(tmp_path: Path) -> None:
    snapshot = training().snapshot()
    for number, entry in enumerate(snapshot["device_traces"][0]):
        entry["time_us"] = number
    (rank,) = imported(tmp_path, dump(tmp_path, snapshot)).ranks
    assert_adds_up(rank)
    assert rank.coverage.problems == ()


def test_several_ranks(tmp_path: Path) -> None:
    paths = [
        dump(tmp_path, training(steps=steps).snapshot(), f"rank{steps}.pickle") for steps in (1, 2)
    ]
    capture = imported(tmp_path, *paths)
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    assert capture.info.world_size == 2


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = dump(tmp_path, training().snapshot(), protocol=protocol)
    assert imported(tmp_path, path).ranks[0].events > 0


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle.gz"
    path.write_bytes(gzip.compress(pickle.dumps(training().snapshot())))
    assert imported(tmp_path, path).ranks[0].events > 0


def test_a_report_names_no_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(tmp_path, dump(tmp_path, training().snapshot()))
    assert run("report", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "no command line is known" in shown
    assert "recorded from code" not in shown


def test_without_a_history(tmp_path: Path) -> None:
    history = training()
    (rank,) = imported(tmp_path, dump(tmp_path, history.snapshot()["segments"])).ranks
    assert rank.peak().allocated_bytes == history.allocators[0].allocated_bytes
    assert any("no history" in note for note in rank.coverage.notes)


def test_as_older_releases_wrote_it(tmp_path: Path) -> None:
    history = training()
    snapshot = history.snapshot()
    for segment in snapshot["segments"]:
        for key in ("segment_pool_id", "is_expandable", "requested_size"):
            del segment[key]
        for block in segment["blocks"]:
            told = {"addr": block.pop("address"), "frames": block.pop("frames")}
            block["history"] = [told | {"real_size": block.pop("requested_size")}]
    for entry in snapshot["device_traces"][0]:
        del entry["time_us"]
    del snapshot["allocator_settings"]
    (rank,) = imported(tmp_path, dump(tmp_path, snapshot)).ranks
    assert_adds_up(rank)
    assert rank.peak().allocated_bytes == history.allocators[0].peak_allocated_bytes
    assert any("tells no times" in note for note in rank.coverage.notes)


class Hostile:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    witness = tmp_path / "witness"
    path = dump(tmp_path, {"segments": Hostile(os.mkdir, str(witness))}, protocol=protocol)
    assert run("import", path, "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "more than plain data" in err or "it is no pickle" in err
    assert not witness.exists()
    assert not (tmp_path / "run").exists()


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "segments[0] is 1, not a dictionary"),
        ("text", "it holds a str"),
        ({}, "segments is None, not a list"),
        ({"segments": [], "device_traces": []}, "it holds no memory"),
        ({"segments": [{"address": "a"}]}, "segments[0].address is 'a'"),
        ({"segments": [{"address": -1}]}, "segments[0].address is -1"),
        (
            {"segments": [], "device_traces": [[{"action": "alloc", "addr": 1, "size": 2**45}]]},
            "device_traces[0][0].size is",
        ),
        (
            {
                "segments": [{"address": 1, "total_size": 0, "blocks": []}],
                "allocator_settings": {"max_split_size": "much"},
            },
            "settings in the snapshot make no sense",
        ),
        ({"segments": [], "device_traces": [[{"action": 3}]]}, "device_traces[0][0].action is 3"),
        ({"segments": [], "device_traces": {"a": 1}}, "device_traces is"),
        ({"segments": nested(150)}, "segments[0] is"),
    ],
)
def test_what_is_none_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, words: str
) -> None:
    assert run("import", dump(tmp_path, content), "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x04", b"\x80\x04]" + b"(" * 1000])
def test_what_is_no_pickle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "a.pickle"
    path.write_bytes(data)
    assert run("import", path, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_truncated_snapshot_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(training().snapshot())
    for cut in range(1, len(whole), len(whole) // 40):
        path = tmp_path / "a.pickle"
        path.write_bytes(whole[:cut])
        assert run("import", path, "--out", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()


def test_a_missing_file_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", tmp_path / "none.pickle") == 2
    assert "there is no such file" in capsys.readouterr().err
    assert run("import", tmp_path) == 2
    assert "it is a folder" in capsys.readouterr().err
