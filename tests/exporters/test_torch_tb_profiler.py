"""Traces for torch-tb-profiler, asked as its own web page asks it, in a TensorBoard server."""

from __future__ import annotations

import gzip
import json
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tests.support.small_runs import RUNS
from tests.support.tensorboard_server import tensorboard

from memlens.capture import Capture, RankCapture
from memlens.exporters import export
from memlens.palette import label
from memlens.report.text import plain

pytestmark = pytest.mark.slow

PATIENCE_S = 60
PREFIX = "/data/plugin/pytorch_profiler"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Capture]:
    return {name: make(tmp_path_factory.mktemp("runs") / name) for name, make in RUNS.items()}


@pytest.fixture(scope="module")
def logs(runs: dict[str, Capture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of TensorBoard's with every run in it, and one that had to be thinned out."""
    folder = tmp_path_factory.mktemp("logs")
    for name, capture in runs.items():
        export(capture, "torch-tb-profiler", folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memlens.exporters.torch_tb_profiler.MOST_EVENTS", 500)
        export(runs["cpu"], "torch-tb-profiler", folder / "thin")
    return folder


@pytest.fixture(scope="module")
def server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with tensorboard(logs, log, runs=0) as url:
        deadline = time.monotonic() + PATIENCE_S
        # It reads each run in a process of its own, and lists those that it has read.
        while len(ask(url, "/runs")["runs"]) < len(RUNS) + 1:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    said = log.read_text()
    assert "Traceback" not in said
    assert "Error" not in said  # such as: ranges on the same thread should not intersect


def ask(url: str, path: str, **query: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}{PREFIX}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        body = answer.read()
        packed = answer.headers.get("Content-Encoding") == "gzip"
    return json.loads(gzip.decompress(body) if packed else body)


def memory(server: str, what: str, run: str, rank: RankCapture, **query: str) -> list[Any]:
    """Rows of the Memory view, of one device, in bytes."""
    answer = ask(
        server, what, run=run, worker=f"host_{rank.rank}", span="1", view="Memory",
        memory_metric="B", **query,
    )  # fmt: skip
    rows: list[Any] = answer["rows"].get(device_name(rank), [])
    return rows


def device_name(rank: RankCapture) -> str:
    return "CPU" if rank.device == "cpu" else f"GPU{rank.device[-1]}"


def test_it_lists_runs_ranks_and_views(server: str, runs: dict[str, Capture]) -> None:
    assert sorted(ask(server, "/runs")["runs"]) == sorted([*RUNS, "thin"])
    for name, capture in runs.items():
        views = ask(server, "/views", run=name)
        assert ("Memory" in views) == (name != "empty")
        if name != "empty":
            workers = ask(server, "/workers", run=name, view="Memory")
            assert workers == sorted({f"host_{rank.rank}" for rank in capture.ranks})


@pytest.mark.parametrize("name", [name for name in RUNS if name != "empty"])
def test_its_curve_is_the_captures(server: str, runs: dict[str, Capture], name: str) -> None:
    for rank in runs[name].ranks:
        rows = memory(server, "/memory_curve", name, rank, time_metric="us")
        timeline = rank.timeline()
        curve = [int(allocated) for _, allocated, _ in rows][::2]  # in between, its own corners
        if name == "paused":  # where recording goes on, several events have one level
            curve = [level for level, _ in groupby(curve)]
        assert curve == timeline.allocated_bytes.tolist()
        assert max(curve) == rank.peak().allocated_bytes
        assert curve[-1] == timeline.allocated_bytes[-1]
        reserved = [int(value) for _, _, value in rows]
        assert max(reserved) == (rank.reserved_peak_bytes or 0)


@pytest.mark.parametrize("name", ["cpu", "cuda", "hostile", "stepless", "thin"])
def test_its_tables_are_about_category_and_module(
    server: str, runs: dict[str, Capture], name: str
) -> None:
    """What operators have allocated and not freed is what is alive at the end, by category."""
    for rank in runs["cpu" if name == "thin" else name].ranks:
        rows = memory(server, "/memory", name, rank)
        held: Counter[str] = Counter()
        for operator, _, _, size_bytes, *_ in rows:
            held[operator.split(" | ")[0]] += int(size_bytes)
        end = rank.categories_at(int(rank.blocks.time_ns[-1]))
        assert {key: size for key, size in held.items() if size} == {
            label(category): size for category, size in end.items() if size
        }
        modules = {operator.partition(" | ")[2] for operator, *_ in rows}
        known = set(map(plain, rank.to_arrow()["module"].unique().to_pylist()))
        assert modules <= known if name == "thin" else modules == known


def test_its_events_are_the_blocks(server: str, runs: dict[str, Capture]) -> None:
    for name in ("cpu", "cuda"):
        for rank in runs[name].ranks:
            rows = memory(server, "/memory_events", name, rank, time_metric="us")
            assert sorted(int(size) for _, size, *_ in rows) == sorted(
                rank.blocks.size_bytes[rank.blocks.size_bytes > 0].tolist()
            )
            assert not [operator for operator, *_ in rows if operator == "<unknown>"]


def test_a_long_recording_is_thinned_out_and_keeps_its_peaks(
    server: str, runs: dict[str, Capture]
) -> None:
    for rank in runs["cpu"].ranks:
        assert len(rank.timeline().time_ns) > 1_000
        rows = memory(server, "/memory_events", "thin", rank, time_metric="us")
        assert 200 < len(rows) <= 250  # each stands for an allocation and a free
        curve = memory(server, "/memory_curve", "thin", rank, time_metric="us")
        assert max(allocated for _, allocated, _ in curve) == rank.peak().allocated_bytes


def test_steps_are_its_steps(server: str, runs: dict[str, Capture], logs: Path) -> None:
    overview = ask(server, "/overview", run="cpu", worker="host_0", span="1", view="Overview")
    assert len(overview["steps"]["rows"]) == len(runs["cpu"].ranks[0].steps())


def test_the_trace_view_has_levels_by_category(server: str, runs: dict[str, Capture]) -> None:
    rank = runs["cpu"].ranks[0]
    trace = ask(server, "/trace", run="cpu", worker="host_0", span="1", view="Trace")
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    highest = max(counters, key=lambda event: sum(event["args"].values()))
    peak = rank.peak()
    assert sum(highest["args"].values()) == peak.allocated_bytes
    assert {key: size for key, size in highest["args"].items() if size} == {
        label(category): size for category, size in peak.categories.items() if size
    }
