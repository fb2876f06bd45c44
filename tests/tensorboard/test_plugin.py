"""The tab "Memory" in a real TensorBoard: what it serves, and that nothing takes TensorBoard down."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.large import make_capture
from tests.support.memory_tab import MemoryTab, memory_tab

import memlens

HOSTILE = "<script>alert(1)</script>"
SECRET = "no client may see this"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, damaged ones among them, with a secret beside their folder."""
    folder = tmp_path_factory.mktemp("tensorboard")
    (folder / "secret.json").write_text(json.dumps(SECRET))
    logs = folder / "logs"
    make_capture(logs / "good", events=20_000, ranks=2)
    shutil.copytree(logs / "good", logs / "memlens-runs" / "inner")
    # With the slash in it, these are two folders.
    shutil.copytree(logs / "good", logs / HOSTILE)
    for name in ("bad-header", "bad-stream", "bad-rank"):
        shutil.copytree(logs / "good", logs / name)
    (logs / "bad-header" / "run.json").write_text("[" * 100_000)
    (logs / "bad-rank" / "rank-00000" / "rank.json").write_bytes(b"\xff\x00")
    events = logs / "bad-stream" / "rank-00001" / "events.arrow"
    events.write_bytes(events.read_bytes()[: events.stat().st_size // 2])
    (logs / "loop").symlink_to(logs)
    return logs


@pytest.fixture(scope="module")
def tab(logdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryTab]:
    log = tmp_path_factory.mktemp("log") / "log"
    with memory_tab("--logdir", str(logdir), log=log, prefix="/some/where") as tab:
        yield tab
        assert "Traceback" not in tab.log
        assert "In 3.0, this warning will become an error" not in tab.log


def test_the_tab_is_there(tab: MemoryTab) -> None:
    listing = tab.get("/data/plugins_listing").json["memlens"]
    assert listing["enabled"]
    assert listing["tab_name"] == "Memory"
    assert listing["loading_mechanism"] == {
        "type": "IFRAME",
        "module_path": "/some/where/data/plugin/memlens/static/index.js",
    }
    entry = tab.get("/data/plugin_entry.html?name=memlens")
    assert b'<base href="plugin/memlens/" />' in entry.body
    script = tab.plugin("static/index.js")
    assert script.status == 200
    assert script.headers["content-type"].startswith("text/javascript")
    assert b"export function render" in script.body


def test_every_file_of_the_pages_is_served(tab: MemoryTab) -> None:
    folder = Path(memlens.__file__).parent / "web" / "static"
    files = [path for path in folder.rglob("*") if path.suffix in (".js", ".css", ".txt")]
    assert files
    for path in files:
        answer = tab.plugin(f"static/{path.relative_to(folder).as_posix()}")
        assert answer.body == path.read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_answers_are_compressed_and_run_nothing(tab: MemoryTab) -> None:
    answer = tab.plugin("timeline?run=good&rank=0")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.sent_bytes < len(answer.body) / 2
    assert answer.headers["content-type"] == "application/json"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-cache, must-revalidate"
    assert tab.get("/data/plugin/memlens/runs", "HEAD").status == 200
    assert tab.get("/data/plugin/memlens/runs", "POST").status == 405


def test_runs_and_their_damage(tab: MemoryTab) -> None:
    answer = tab.ask("runs")
    errors = {run["run"]: run["error"] for run in answer["runs"]}
    good = ["good", f"{HOSTILE.partition('/')[0]}/script>", "memlens-runs/inner", "bad-stream"]
    assert {run for run, error in errors.items() if error is None} == {*good, "bad-rank"}
    assert "damaged memlens run" in errors["bad-header"]
    [broken] = [run for run in answer["runs"] if run["run"] == "bad-rank"]
    assert any("damaged" in problem for problem in broken["problems"])
    tab.ask("timeline", run="bad-rank", rank=1)
    tab.ask("timeline", 404, run="bad-rank", rank=0)
    tab.ask("timeline", run="bad-stream", rank=0)
    assert "damaged capture" in tab.ask("timeline", 422, run="bad-stream", rank=1)["error"]
    tab.ask("timeline", 422, run="bad-header", rank=0)


def test_totals_over_http(tab: MemoryTab, logdir: Path) -> None:
    rank = memlens.load(logdir / "good").rank(1)
    timeline = tab.ask("timeline", run="good", rank=1)
    assert max(timeline["allocated"]) == rank.peak().allocated_bytes
    assert tab.ask("alive", run="good", rank=1)["allocated_bytes"] == rank.peak().allocated_bytes
    hostile = next(run["run"] for run in tab.ask("runs")["runs"] if "<script>" in run["run"])
    assert tab.ask("timeline", run=hostile, rank=1)["allocated"] == timeline["allocated"]


@pytest.mark.parametrize("path", [
    "static/../../../../../secret.json",
    "static/%2e%2e/%2e%2e/secret.json",
    "static//etc/passwd",
    "static/..%2f..%2fsecret.json",
    "static/index.js%00.png",
    "static/",
    "static",
    "../secret.json",
    "timeline/../../secret.json",
    "timeline?run=../logs/good&rank=0",
    "timeline?run=..&rank=0",
    "timeline?run=/etc&rank=0",
    "timeline?run=good/rank-00000&rank=0",
    "timeline?run=good/&rank=0",
    "timeline?run=./good&rank=0",
    "timeline?run=good%00&rank=0",
    "timeline?run=good&rank=../0",
    "timeline?run=file:///etc&rank=0",
    "timeline?run=&rank=",
    "timeline?run=%ff%fe&rank=0",
])  # fmt: skip
def test_no_path_leaves_the_logdir(tab: MemoryTab, path: str) -> None:
    answer = tab.plugin(path)
    assert answer.status in (400, 404)
    assert SECRET.encode() not in answer.body
    assert b"root:" not in answer.body


@pytest.mark.parametrize("query", ["from=NaN", "to=Infinity", "from=-1", "points=1e3", "to=" + "9" * 400,
    "from=1&from=2", "nothing=1", "points=%00", "from=5&to=1"])  # fmt: skip
def test_numbers_that_are_none(tab: MemoryTab, query: str) -> None:
    answer = tab.plugin(f"timeline?run=good&rank=0&{query}")
    assert answer.status == 400
    assert list(answer.json) == ["error"]


def test_what_comes_back_of_a_hostile_question_is_json(tab: MemoryTab) -> None:
    wanted = urllib.parse.quote(HOSTILE + '"\r\nSet-Cookie: a=b')
    for path in (
        f"timeline?run={wanted}&rank=0",
        f"timeline?{wanted}=1",
        f"alive?run=good&rank={wanted}",
    ):
        answer = tab.plugin(path)
        assert answer.status in (400, 404)
        assert answer.headers["content-type"] == "application/json"
        assert "set-cookie" not in answer.headers
        assert isinstance(answer.json["error"], str)


def test_many_at_once(tab: MemoryTab) -> None:
    def ask(number: int) -> Any:
        return tab.ask("timeline", run="memlens-runs/inner", rank=number % 2)["allocated"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert all(answer == answers[number % 2] for number, answer in enumerate(answers))


def test_all_ranks(tab: MemoryTab, logdir: Path) -> None:
    tab.until(lambda: bool(tab.ask("ranks", run="good")["ready"]))
    peaks = [rank.peak().allocated_bytes for rank in memlens.load(logdir / "good").ranks]
    assert [rank["peak_bytes"] for rank in tab.ask("ranks", run="good")["ranks"]] == peaks


@pytest.mark.slow
def test_several_folders_and_another_file_system(logdir: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    spec = f"one:{logdir / 'good'},two:{logdir / 'memlens-runs'},file://{logdir / 'memlens-runs'}"
    with memory_tab(
        "--logdir_spec", spec, log=tmp_path / "log", XDG_CACHE_HOME=str(tmp_path)
    ) as tab:
        assert [run["run"] for run in tab.ask("runs")["runs"]] == ["inner", "one", "two/inner"]
        levels = [tab.ask("timeline", run=run, rank=1)["allocated"] for run in ("inner", "one")]
        assert levels[0] == levels[1] == tab.ask("timeline", run="two/inner", rank=1)["allocated"]
        assert tab.get("/data/plugins_listing").json["memlens"]["enabled"]
        assert "memlens" not in tab.log.lower()


@pytest.mark.slow
def test_a_logdir_behind_a_url_that_is_a_run(logdir: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with memory_tab(
        "--logdir", f"file://{logdir / 'good'}", log=tmp_path / "log", XDG_CACHE_HOME=str(tmp_path)
    ) as tab:
        assert [run["run"] for run in tab.ask("runs")["runs"]] == ["good"]
        tab.ask("steps", run="good", rank=0)


@pytest.mark.slow
def test_nothing_to_show(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with memory_tab("--logdir", str(tmp_path / "logs"), log=tmp_path / "log", fast=True) as tab:
        assert tab.ask("runs")["runs"] == []
        assert not tab.get("/data/plugins_listing").json["memlens"]["enabled"]
        make_capture(tmp_path / "logs" / "run", events=9_000, ranks=1)
        tab.until(lambda: bool(tab.get("/data/plugins_listing").json["memlens"]["enabled"]))
        tab.ask("timeline", run="run", rank=0)


@pytest.mark.parametrize(
    "broken",
    [
        "memlens.web",
        pytest.param("memlens", marks=pytest.mark.slow),
        pytest.param("memlens.disk.format", marks=pytest.mark.slow),
    ],
)
def test_an_import_that_fails(logdir: Path, tmp_path: Path, broken: str) -> None:
    """TensorBoard goes on, and the tab says why it is empty."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {broken!r}:
            raise OSError("libmissing.so.1: cannot open <b>shared</b> object file")

sys.meta_path.insert(0, Broken())
"""
    )
    log = tmp_path / "log"
    with memory_tab("--logdir", str(logdir), log=log, ready=False, PYTHONPATH=str(tmp_path)) as tab:
        error = tab.ask("runs", 500)["error"]
        assert "memlens can not be loaded" in error
        assert "libmissing.so.1" in error
        assert tab.ask("timeline", 500, run="good", rank=0) == {"error": error}
        listing = tab.get("/data/plugins_listing").json
        assert listing["memlens"]["enabled"]
        assert "scalars" in listing
        assert b"export function render" in tab.plugin("static/index.js").body
        assert tab.get("/data/runs").json == []
        assert "Traceback" not in tab.log
