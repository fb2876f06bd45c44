"""Many ranks: nothing is read before it is asked for, processes share the work, and it stays small."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from tests.support.large import make_capture

import memlens
from memlens.across import read
from memlens.cli import _exit_code
from memlens.disk import lazy
from memlens.disk.reader import read_rank
from memlens.events import Category

RANKS = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "run"
    make_capture(folder, 600, ranks=RANKS, layers=8)
    return folder


def report(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> str:
    assert _exit_code(["report", str(run), *options]) == 0
    return capsys.readouterr().out


def test_opening_a_run_reads_no_stream(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(folder: Path) -> Any:
        reads.append(folder.name)
        return read_rank(folder)

    monkeypatch.setattr(lazy, "read_rank", counted)
    capture = memlens.load(run)
    assert capture.info.world_size == len(capture.ranks) == RANKS
    events = [rank.events for rank in capture.ranks]
    assert reads == []

    third = capture.rank(3)
    peak = third.peak()
    assert third.coverage.complete
    assert reads == ["rank-00003"]
    assert len(third.timeline().time_ns) == events[3]  # what the header promised
    assert sum(peak.categories[category] for category in Category) == peak.allocated_bytes

    third.release()
    assert third.peak() == peak
    assert reads == ["rank-00003"] * 2


def test_only_the_rank_asked_for_is_read(run: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "rank-00005/events.arrow").write_bytes(b"broken")
    content = json.loads(report(capsys, copy, "--json", "--rank", "4"))
    assert [rank["rank"] for rank in content["ranks"]] == [4]
    assert content["warnings"] == []


@pytest.mark.parametrize("options", [(), ("--json",), ("--json", "--rollup")], ids=" ".join)
def test_processes_of_their_own_read_the_same(
    run: Path,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = report(capsys, run, *options)
    asked = []
    original = read._ask_elsewhere

    def elsewhere(*arguments: Any) -> Any:
        asked.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(read, "FEW_BYTES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(read, "_ask_elsewhere", elsewhere)
    assert report(capsys, run, *options) == here
    assert asked


def test_a_folder_that_can_only_be_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written beside the run."""
    copy = shutil.copytree(run, tmp_path / "run")
    before = sorted(copy.rglob("*"))
    report(capsys, copy)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.slow
def test_a_thousand_ranks_in_a_minute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,024 ranks of 20,000 events within 60 s on two cores and 2 GB, an eighth of them made here.

    Asserted is the time of the cores, as others may work on this machine: 2 x 60 s / 8, and of those
    not more than two thirds, so that starting processes and printing have their share.
    """
    bench = _bench()
    make_capture(tmp_path / "run", 20_000, ranks=128)
    for options in ([], ["--json"]):
        measured = bench.report(tmp_path / "run", options)
        with capsys.disabled():
            print(f"\n128 ranks, report {' '.join(options)}: {measured}")
        assert measured["exit"] == 0
        assert measured["peak_rss_mb"] < 1000
        if not options:
            assert measured["cpu_s"] < 10


def _bench() -> Any:
    tools = Path(__file__).resolve().parents[2] / "tools"
    spec = spec_from_file_location("bench_ranks", tools / "bench_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.path.insert(0, str(tools))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(tools))
    return module
