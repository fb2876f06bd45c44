"""A run is looked at while its job still writes it, and `memlens view` shows runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import UNTIL_TOLD, clean_environment
from tests.support.large import make_capture
from tests.support.memory_tab import memory_tab


@pytest.mark.slow
def test_a_run_that_is_still_written(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(UNTIL_TOLD)
    logs = tmp_path / "logs"
    logs.mkdir()
    job = subprocess.Popen(
        [sys.executable, "-m", "memlens", "run", "--out", str(logs / "run"), str(script)],
        stdin=subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        with memory_tab("--logdir", str(logs), log=tmp_path / "log") as tab:

            def state() -> str:
                runs = tab.ask("runs")["runs"]
                return str(runs[0]["state"]) if runs else ""

            def span() -> int:
                return int(tab.ask("timeline", run="run", rank=0)["span"][1])

            def can_be_read() -> bool:
                return tab.plugin("timeline?run=run&rank=0").status == 200

            tab.until(lambda: state() == "running")
            tab.until(can_be_read)
            lengths = [span()]
            for _ in range(2):
                tab.until(lambda: span() > lengths[-1])
                lengths.append(span())
            # Levels add up whatever was written by then.
            timeline = tab.ask("timeline", run="run", rank=0)
            sums = [sum(levels) for levels in zip(*timeline["categories"].values(), strict=True)]
            assert sums == timeline["allocated"]
            assert state() == "running"
            assert job.stdin is not None
            job.stdin.close()
            assert job.wait(60) == 0
            tab.until(lambda: state() == "finished")
            tab.until(lambda: tab.ask("runs")["runs"][0]["ranks"][0]["events"] is not None)
            assert "Traceback" not in tab.log
    finally:
        job.kill()
        job.communicate()


# -- memlens view --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "memlens-runs"
    make_capture(folder / "a", events=9_000, ranks=1)
    make_capture(folder / "b", events=9_000, ranks=1)
    return folder


def view(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memlens", "view", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean_environment(), **environment},
    )


@pytest.mark.parametrize(
    ("shown", "keys"),
    [
        pytest.param(["a"], ["a"], marks=pytest.mark.slow),
        pytest.param(["."], ["a", "b"], marks=pytest.mark.slow),
        pytest.param(["a", "b"], ["a", "b"], marks=pytest.mark.slow),
        (["a", ".", "b/../a"], ["a", "a-2", "memlens-runs/a", "memlens-runs/b"]),
    ],
)
def test_view_shows_runs_until_it_is_interrupted(
    runs: Path, shown: list[str], keys: list[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "memlens", "view", "--port", "0", *shown],
        cwd=runs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environment(), "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#memlens", address)
            assert found_at(address) == keys
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stdout.read().strip() == "(Ctrl-C ends it)"
            assert process.stderr.read() == ""
        finally:
            process.kill()


def found_at(address: str) -> list[str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        url = address.replace("#memlens", "data/plugin/memlens/runs")
        with opener.open(url, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        if not answer["scanning"]:
            return [run["run"] for run in answer["runs"]]


def test_view_of_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    result = view(str(tmp_path / "nothing"))
    assert result.returncode == 2
    assert result.stderr == (
        f"memlens: there is no folder {tmp_path / 'nothing'}; memlens run TRAIN.py makes one\n"
    )
    (tmp_path / "a,b").mkdir()
    result = view(str(tmp_path / "a,b"), str(runs))
    assert result.returncode == 2
    assert "no comma in any" in result.stderr
    assert view().returncode == 2


@pytest.mark.slow
def test_view_at_a_port_that_is_taken(runs: Path, tmp_path: Path) -> None:
    with memory_tab("--logdir", str(runs), log=tmp_path / "log") as tab:
        result = view(str(runs), "--port", str(tab.port))
        assert result.returncode == 2
        assert result.stderr.startswith("memlens: TensorBoard does not start: ")
        assert result.stderr.count("\n") == 1


def test_view_without_tensorboard(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n")
    result = view(str(runs), PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr == (
        "memlens: tensorboard is needed to look at runs in a browser; install it with: "
        'pip install "memlens[tensorboard]"\n'
    )
