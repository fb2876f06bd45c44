"""tools/gpu_check.py over the CPU's allocator: the same code that a GPU is checked with."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
RANK: dict[str, Any] = {
    "device": "cuda:0",
    "events": 10,
    "step_end_bytes": [1024, 2048],
    "peak_bytes": 200_000,
    "reserved_peak_bytes": 2_097_152,
    "peak_categories": {"weight": 198_001, "unknown": 1999},
    "complete": True,
    "lost_events": 0,
    "witness_difference_bytes": 0,
    "problems": [],
}
FOUND: dict[str, Any] = {
    "source": "cuda",
    "problems": [],
    "ranks": [RANK],
    "steps": 2,
    "allocated_bytes": [1024, 2048],
    "peak_bytes": 200_000,
    "reserved_peak_bytes": 2_097_152,
}


def check(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the tool from another folder; returns its table as well."""
    table = folder / "table.md"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MEMLENS_OUT")}
    command = [sys.executable, str(TOOLS / "gpu_check.py"), "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(table), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, table.read_text() if table.exists() else ""


def states(table: str) -> dict[str, str]:
    """Check to state; titles that come in several sections stand for the last."""
    rows = re.findall(r"^\| ([^|]+) \| (\S[^|]*) \| [^|]+ \| \d+ \|$", table, re.MULTILINE)
    return dict(rows)


def test_some_of_each_kind(tmp_path: Path) -> None:
    chosen = ("batch norm", "--oom-only", "dispatch-bound", "cudnn.benchmark", "losses of conv")
    words = [f"--only={title}" for title in chosen]
    done, table = check(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(table) == {
        "convolutions with batch norm, SGD": "pass",
        "the same, cudnn.benchmark": "skipped",
        "losses of convolutions": "skipped",
        "dispatch-bound": "measured",
        "--oom-only, a job that runs out": "skipped",
        "--oom-only, nothing fails": "skipped",
    }
    assert "3 steps" in table
    assert re.search(r"memlens: \d+\.\d+ ms, \d+\.\d+ x", table)
    assert "1 pass, 1 measured, 4 skipped" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


@pytest.mark.slow
def test_all_that_the_cpu_can_tell(tmp_path: Path) -> None:
    done, table = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = states(table)
    assert set(found.values()) == {"pass", "measured", "skipped"}
    assert sum(state == "pass" for state in found.values()) >= 9
    assert "bit-identical" in table
    assert "operators: " in table


def test_where_time_is_over_it_says_so(tmp_path: Path) -> None:
    done, table = check(tmp_path, "--minutes", "0.1", "--only", "batch norm")
    assert done.returncode == 1, "nothing was proved"
    assert states(table) == {"convolutions with batch norm, SGD": "skipped"}
    assert "no time left" in table


@pytest.mark.slow
def test_a_job_that_fails_costs_its_own_row(tmp_path: Path) -> None:
    # Its capture can not be written: the folder is there already.
    work = tmp_path / "work"
    (work / "001-run").mkdir(parents=True)
    (work / "001-run" / "mine").touch()
    done, table = check(tmp_path, "--work", str(work), "--only", "batch norm", "--only", "fused")
    assert done.returncode == 1
    assert states(table) == {
        "convolutions with batch norm, SGD": "FAIL",
        "fused AdamW": "pass",
    }
    assert "## What failing jobs printed" in table
    assert "never overwritten" in table


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says whether what a job and its capture tell agrees."""
    monkeypatch.syspath_prepend(str(TOOLS))
    yield import_module("gpu.checks").judge_conservation
    for name in [name for name in sys.modules if name == "gpu" or name.startswith("gpu.")]:
        del sys.modules[name]


def test_what_agrees_passes(judge: Any) -> None:
    verdict = judge(FOUND, "cuda")
    assert verdict.state == "pass"
    assert "peak 200,000 B, reserved 2,097,152 B: all as the allocator counts" in verdict.figures[0]


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ("rank", "step_end_bytes", [1024, 2049], "end of step 1: 2,049 B, allocator 2,048 B"),
        ("rank", "step_end_bytes", [1024], "1 steps in the capture, 2 in the job"),
        ("rank", "peak_bytes", 200_001, "peak: 200,001 B, allocator 200,000 B"),
        ("rank", "reserved_peak_bytes", 0, "reserved peak: 0 B, allocator 2,097,152 B"),
        ("rank", "reserved_peak_bytes", None, "reserved peak: not told, allocator 2,097,152 B"),
        ("rank", "peak_categories", {"unknown": 2000}, "1.00% unknown at the peak"),
        ("rank", "complete", False, "not complete"),
        ("rank", "lost_events", 3, "lost_events 3"),
        ("rank", "problems", ["the disk was full"], "the disk was full"),
        ("rank", "device", "cpu", "recorded cpu with source cuda, not cuda"),
        ("job", "problems", ["no training was seen"], "no training was seen"),
        ("job", "allocated_bytes", [], "the job has not read the allocator's counters"),
        ("job", "allocated_bytes", [1024], "the job has not read the allocator's counters"),
        ("job", "peak_bytes", None, "the job has not read the allocator's counters"),
        ("job", "steps", 0, "the job made no step"),
        ("job", "ranks", [RANK, RANK], "2 captures instead of one"),
    ],
)
def test_any_difference_fails(judge: Any, where: str, key: str, value: Any, said: str) -> None:
    found = copy.deepcopy(FOUND)
    (found["ranks"][0] if where == "rank" else found)[key] = value
    verdict = judge(found, "cuda")
    assert verdict.state == "FAIL"
    assert said in verdict.figures
