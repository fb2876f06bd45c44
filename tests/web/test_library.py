"""Finding runs, keeping ranks in memory, and reading again what has grown."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.large import make_capture
from tests.support.pages import Pages

from memlens.web import library as library_module
from memlens.web import scan
from memlens.web.library import Library
from memlens.web.opened import OpenedRank
from memlens.web.questions import answer
from memlens.web.scan import Folder
from memlens.web.views import ranks as ranks_view


def keys(folder: Path, name: str = "") -> list[str]:
    return sorted(Folder(folder, name).find().runs)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- finding -------------------------------------------------------------------------------------


def test_runs_below_a_folder(runs: Path) -> None:
    assert keys(runs) == ["inner/short", "long"]
    assert keys(runs, "mine") == ["mine/inner/short", "mine/long"]
    assert keys(runs / "long") == ["long"]
    assert keys(runs / "long", "other") == ["other"]
    assert keys(runs / "nowhere") == []


def test_hidden_unreadable_and_circular_folders(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "a" / "linked").symlink_to(runs / "long")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / ".hidden").mkdir()
    shutil.copytree(runs / "long", tmp_path / ".hidden" / "run")
    (tmp_path / "closed").mkdir(mode=0o000)
    try:
        assert keys(tmp_path) == ["a/linked"]
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_a_run_is_not_looked_into(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "long", tmp_path / "run")
    shutil.copytree(runs / "long", tmp_path / "run" / "copy")
    assert keys(tmp_path) == ["run"]


def test_huge_trees_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MOST_FOLDERS", 50)
    for number in range(60):
        (tmp_path / str(number)).mkdir()
    found = Folder(tmp_path).find()
    assert "the rest was not looked at" in found.problems[0]
    deep = tmp_path / "0"
    for _ in range(20):
        deep /= "x"
    deep.mkdir(parents=True)
    (deep / "run.json").touch()
    assert not Folder(tmp_path / "0").find().runs
    pages = Pages(tmp_path)
    assert "the rest was not looked at" in pages.ask("runs")["problems"][0]


def test_what_runs_tells(pages: Pages) -> None:
    answer = pages.ask("runs")
    assert not answer["scanning"]
    by_key = {run["run"]: run for run in answer["runs"]}
    assert sorted(by_key) == ["inner/short", "long"]
    long = by_key["long"]
    assert (long["name"], long["state"], long["world_size"]) == ("long", "finished", 2)
    assert long["error"] is None
    assert [(rank["key"], rank["rank"], rank["launch"]) for rank in long["ranks"]] == [
        ("0", 0, 0),
        ("1", 1, 0),
    ]
    assert [series["key"] for series in answer["series"]][:2] == ["weight", "master_weight"]


def test_runs_of_the_same_name_in_several_places(runs: Path) -> None:
    library = Library([Folder(runs), Folder(runs / "long"), Folder(runs, "named"), Folder(runs)])
    library.search(wait=True)
    assert library.keys() == [
        "inner/short", "inner/short (2)", "long", "long (2)", "long (3)", "named/inner/short",
        "named/long",
    ]  # fmt: skip
    for key in library.keys():  # noqa: SIM118 - it is no dict
        assert library.rank(key, "0").rank.rank == 0


# -- damage --------------------------------------------------------------------------------------


def test_damaged_runs_say_so(runs: Path, tmp_path: Path) -> None:
    for name in ("header", "stream", "rank", "empty"):
        shutil.copytree(runs / "inner" / "short", tmp_path / name)
    (tmp_path / "header" / "run.json").write_text("{")
    (tmp_path / "rank" / "rank-00000" / "rank.json").write_text('{"format": 3}')
    shutil.rmtree(tmp_path / "empty" / "rank-00000")
    events = tmp_path / "stream" / "rank-00000" / "events.arrow"
    content = bytearray(events.read_bytes())
    content[len(content) // 2] ^= 0xFF
    events.write_bytes(content)
    pages = Pages(tmp_path)
    errors = {run["run"]: run["error"] for run in pages.ask("runs")["runs"]}
    assert "damaged memlens run" in errors["header"]
    assert "not a memlens rank folder" in errors["rank"]
    assert "holds no rank" in errors["empty"]
    assert errors["stream"] is None  # streams are read when somebody asks
    for name in ("header", "rank", "empty", "stream"):
        for question in ("timeline", "alive", "modules", "lifetimes", "steps"):
            assert pages.ask(question, 422, run=name, rank=0)["error"]
    until(lambda: bool(pages.ask("ranks", run="stream")["ready"]))
    [row] = pages.ask("ranks", run="stream")["ranks"]
    assert "damaged capture" in row["error"]


def test_a_rank_that_does_not_fit(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(runs)
    monkeypatch.setattr(library_module, "_free_bytes", lambda: 1_000_000)
    assert "more than fit into" in pages.ask("timeline", 422, run="long", rank=0)["error"]
    monkeypatch.undo()

    def no_memory(rank: Any) -> OpenedRank:
        raise MemoryError

    monkeypatch.setattr(library_module, "OpenedRank", no_memory)
    assert "more than fit into" in pages.ask("timeline", 422, run="long", rank=0)["error"]
    monkeypatch.undo()
    pages.ask("timeline", run="long", rank=0)


def test_a_fault_of_ours_is_one_sentence(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pages = Pages(runs)

    def broken(rank: Any) -> OpenedRank:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(library_module, "OpenedRank", broken)
    answer = pages.ask("timeline", 500, run="long", rank=0)
    assert answer == {"error": "internal error: ZeroDivisionError: by zero"}
    assert "the question timeline failed" in caplog.text


def test_a_damaged_rank_is_read_once(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "inner" / "short", tmp_path / "run")
    events = tmp_path / "run" / "rank-00000" / "events.arrow"
    content = events.read_bytes()
    events.write_bytes(content[:-3_000])
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0.05)
    pages = Pages(tmp_path)
    error = pages.ask("timeline", 422, run="run", rank=0)["error"]
    reads: list[int] = []

    def counted(rank: Any) -> OpenedRank:
        reads.append(rank.rank)
        return OpenedRank(rank)

    monkeypatch.setattr(library_module, "OpenedRank", counted)
    assert pages.ask("alive", 422, run="run", rank=0)["error"] == error
    assert reads == []
    events.write_bytes(content)  # somebody has copied it again
    until(lambda: bool(answer(pages.library, "steps", {"run": "run", "rank": "0"})[0] == 200))
    assert reads == [0]


# -- in memory -----------------------------------------------------------------------------------


def test_many_threads_read_a_rank_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(runs)
    reads: list[int] = []

    def counted(rank: Any) -> OpenedRank:
        reads.append(rank.rank)
        return OpenedRank(rank)

    monkeypatch.setattr(library_module, "OpenedRank", counted)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: pages.ask("timeline", run="long", rank=0)["allocated"], range(16))
        )
    assert reads == [0]
    assert all(answer == answers[0] for answer in answers)


def test_ranks_leave_memory_the_oldest_first(runs: Path) -> None:
    library = Library([Folder(runs)])
    library.search(wait=True)
    both = library.rank("long", "0").size_bytes + library.rank("long", "1").size_bytes
    library = Library([Folder(runs)], budget_bytes=both)
    library.search(wait=True)
    first, second = library.rank("long", "0"), library.rank("long", "1")
    assert library.rank("long", "0") is first
    library.rank("inner/short", "0")  # now there is no room for all
    assert library.rank("long", "0") is first
    assert library.rank("long", "1") is not second
    library = Library([Folder(runs)], budget_bytes=1)
    library.search(wait=True)
    first = library.rank("long", "0")
    assert library.rank("long", "0") is first  # alone, however large
    library.rank("long", "1")
    assert library.rank("long", "0") is not first


def test_so_many_ranks_over_each_other_as_fit(runs: Path) -> None:
    pages = Pages(runs, budget_bytes=100 * 65_000)
    pages.library.run("long")
    answer = pages.ask("overlay", run="long")
    assert [each["key"] for each in answer["ranks"]] == ["0"]
    assert answer["left_out"] == 1
    both = pages.ask("overlay", run="long", ranks="0,1")  # who asks for them gets them, but slowly
    assert [each["key"] for each in both["ranks"]] == ["0", "1"]


def test_a_run_that_grows_is_read_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(library_module, "RELOAD_AFTER_S", 0.1)
    monkeypatch.setattr(ranks_view, "AGAIN_AFTER_S", 0.1)
    monkeypatch.setattr(library_module, "SCAN_EVERY_S", 0.05)
    make_capture(tmp_path / "run", events=9_000, ranks=1, close=False)
    pages = Pages(tmp_path)
    until(lambda: bool(pages.ask("ranks", run="run")["ready"]))
    [low] = pages.ask("ranks", run="run")["ranks"]
    [run] = pages.ask("runs")["runs"]
    assert run["state"] == "died"  # its header names no process
    assert run["ranks"][0]["events"] is None
    before = pages.ask("timeline", run="run", rank=0)
    shutil.rmtree(tmp_path / "run")
    make_capture(tmp_path / "run", events=18_000, ranks=1)

    def has_grown() -> bool:
        now = pages.ask("timeline", run="run", rank=0)
        return bool(now["span"][1] > before["span"][1])

    until(has_grown)
    until(lambda: bool(pages.ask("runs")["runs"][0]["state"] == "finished"))

    def ranks_have_grown() -> bool:
        now = pages.ask("ranks", run="run")
        assert now["ready"]  # what was known is answered until more is
        return len(now["ranks"][0]["steps"]) > len(low["steps"])

    until(ranks_have_grown)
    make_capture(tmp_path / "later", events=9_000, ranks=1)
    until(lambda: len(pages.ask("runs")["runs"]) == 2)


def test_a_run_that_goes_away(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(library_module, "SCAN_EVERY_S", 0.05)
    shutil.copytree(runs / "inner" / "short", tmp_path / "run")
    pages = Pages(tmp_path)
    pages.ask("timeline", run="run", rank=0)
    shutil.rmtree(tmp_path / "run")
    until(lambda: pages.ask("runs")["runs"] == [])
    pages.ask("timeline", 404, run="run", rank=0)


def test_a_search_does_not_make_anybody_wait(tmp_path: Path) -> None:
    may_go_on = threading.Event()

    class Slow(Folder):
        def find(self) -> scan.Found:
            may_go_on.wait(30)
            return super().find()

    library = Library([Slow(tmp_path)])
    begun = time.monotonic()
    assert not library.has_runs
    assert library.is_scanning
    assert time.monotonic() - begun < 5
    may_go_on.set()
    library.search(wait=True)
    assert not library.is_scanning


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "a'b\"c", "ünï✓", "..."])
def test_hostile_folder_names_are_keys_like_others(runs: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(runs / "inner" / "short", tmp_path / name)
    pages = Pages(tmp_path)
    found = [run["run"] for run in pages.ask("runs")["runs"]]
    assert found == ([] if name.startswith(".") else [name])
    for key in found:
        pages.ask("timeline", run=key, rank=0)


def test_bytes_that_are_no_text_in_a_folder_name(runs: Path, tmp_path: Path) -> None:
    target = os.fsencode(tmp_path) + b"/bad\xff"
    try:
        os.mkdir(target)
    except OSError:
        pytest.skip("this file system takes text only")
    for entry in ("run.json", "rank-00000"):
        os.symlink(os.fsencode(runs / "inner" / "short" / entry), target + b"/" + entry.encode())
    answer = Pages(tmp_path).ask("runs")
    assert answer["runs"] == []
    assert "is no text" in answer["problems"][0]
