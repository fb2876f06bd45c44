"""`memlens run --live` where stderr is no terminal: a line now and then."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tests.support.jobs import ours, run_both, run_memlens, start_memlens, theirs, write_script

import memlens
from memlens.units import format_bytes

TRAINING = """
import sys, time
import torch
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 4))
for step in range(30):
    for parameter in model.parameters():
        parameter.grad = None
    model(torch.randn(64, 256)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    time.sleep(0.05)
print("to stdout", sys.stdin.read())
print("to stderr", file=sys.stderr)
raise SystemExit(5)
"""


def test_lines_on_stderr(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", TRAINING)
    plain, job = run_both(["train.py"], ["--live"], cwd=tmp_path, stdin="typed")
    assert plain.returncode == job.returncode == 5
    assert job.stdout == plain.stdout
    assert theirs(job.stderr) == theirs(plain.stderr)
    lines = [line for line in ours(job.stderr) if line.startswith("memlens: step ")]
    assert 1 <= len(lines) <= 2  # the first step that has ended, and the last one
    assert "\x1b" not in job.stderr
    rank = memlens.load(tmp_path / "run").ranks[0]
    last = rank.steps()[-1]
    assert lines[-1].startswith(
        f"memlens: step {last.step}: peak {format_bytes(last.peak_bytes)} ("
    )
    peak = rank.peak()
    assert lines[-1].endswith(
        f"; highest so far {format_bytes(peak.allocated_bytes)} in step {peak.step}"
    )


def test_a_job_that_trains_nothing_has_no_line(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('hello')")
    answer = run_memlens("run", "--live", "--out", "run", "train.py", cwd=tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "hello\n", "")


def test_the_process_itself_is_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "import os; print(os.getpid())")
    process = start_memlens("run", "--live", "--out", "run", "train.py", cwd=tmp_path)
    assert int(process.communicate(timeout=60)[0]) == process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_the_jobs(number: signal.Signals, tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        """
import signal, sys, time
def stop(number, frame):
    print("got", number, flush=True)
    sys.exit(4)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
""",
    )
    process = start_memlens("run", "--live", "--out", "run", "train.py", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)  # nobody holds the pipes open
    assert (process.returncode, out) == (4, f"got {int(number)}\n")


def test_nothing_is_shown_where_nothing_is_recorded(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "print('hello')")
    off = {"MEMLENS_DISABLE": "1"}
    answer = run_memlens("run", "--live", "--out", "run", "train.py", cwd=tmp_path, env=off)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "hello\n", "")


def test_watching_a_run_of_somebody_else(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", TRAINING.replace("sys.stdin.read()", "''"))
    job = start_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watcher = run_memlens("watch", "run", cwd=tmp_path)  # until the job has ended
    job.communicate(timeout=60)
    assert (watcher.returncode, watcher.stdout) == (0, "")
    last = memlens.load(tmp_path / "run").ranks[0].steps()[-1]
    words = f"memlens: step {last.step}: peak {format_bytes(last.peak_bytes)} ("
    assert watcher.stderr.splitlines()[-1].startswith(words)
    # Once more: it has ended.
    again = run_memlens("watch", "run", cwd=tmp_path)
    assert (again.returncode, again.stderr.splitlines()) == (0, watcher.stderr.splitlines()[-1:])


def test_ctrl_c_ends_watching_and_nothing_else(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "import time, torch; time.sleep(60)")
    job = start_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("*/rank.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watcher = start_memlens("watch", "run", cwd=tmp_path)
    time.sleep(2)
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=60)
    assert (watcher.returncode, out, err) == (0, "", "")
    assert job.poll() is None
    job.kill()
    job.communicate(timeout=60)
    # It was killed, which its folder does not say; its process is gone.
    gone = run_memlens("watch", "run", cwd=tmp_path)
    assert (gone.returncode, gone.stderr) == (0, "")


def test_what_is_no_run_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    answer = run_memlens("watch", "run", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == "memlens: not a memlens run: run/run.json is missing\n"
