"""`memlens run --live` in a real terminal: the job as ever, and our lines below it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.support.jobs import write_script
from tests.support.terminal import Terminal

import memlens
from memlens.palette import CATEGORY_SERIES
from memlens.units import format_bytes

TRAINING = """
import os, signal, sys, time
import torch

model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
def train(steps, pause=0.05):
    for step in range(steps):
        model(torch.randn(64, 256)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} done", flush=True)
        time.sleep(pause)
"""

MEMLENS = [sys.executable, "-m", "memlens", "run", "--live", "--out", "run"]


def start(tmp_path: Path, job: str) -> Terminal:
    write_script(tmp_path / "train.py", TRAINING + job)
    return Terminal([*MEMLENS, "train.py"], cwd=tmp_path)


def looking_on(run: Path) -> list[int]:
    """Processes that look on at a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                folder = os.readlink(entry / "cwd")
            except OSError:
                continue
            if b"--live" in words and Path(folder) == run.parent:
                found.append(int(entry.name))
    return found


def rule(terminal: Terminal) -> int:
    """The line in which our lines begin; -1: they are not there."""
    for number, line in enumerate(terminal.lines()):
        if "memlens ─ step" in line:
            return number
    return -1


def test_below_the_output_of_the_job(tmp_path: Path) -> None:
    terminal = start(tmp_path, "train(80)")
    terminal.wait_for("trend")
    top = rule(terminal)
    # The job scrolls above, our lines stay.
    assert terminal.margins == (0, top - 1)
    lines = terminal.lines()
    assert [line.split()[0] for line in lines[top + 1 : top + 5]] == [
        "now", "step", "highest", "trend",
    ]  # fmt: skip
    assert "■ weight 1.00 MiB" in lines[top + 5]
    assert "optimizer state 1.00 MiB" in lines[top + 5]
    colours = {series.colour.lstrip("#").lower() for series in CATEGORY_SERIES[:3]}
    assert terminal.colours(top + 2) >= {"0072b2", "e69f00"} & colours
    terminal.wait_for("step 79 done")
    assert terminal.wait() == 0
    terminal.close()
    # All of the job's lines, whole and in order; of ours nothing is left.
    written = terminal.history() + terminal.lines()
    steps = [line for line in written if line.startswith("step ") and "done" in line]
    assert steps == [f"step {number} done" for number in range(80)]
    assert rule(terminal) == -1
    assert not any("trend" in line or "highest" in line for line in written)
    assert terminal.margins is None
    row, column = terminal.cursor
    assert column == 0
    assert terminal.lines()[row - 1].startswith("memlens: recorded ")
    # What was shown is what was recorded.
    peak = memlens.load(tmp_path / "run").ranks[0].peak()
    assert format_bytes(peak.allocated_bytes).encode() in terminal.written
    assert not looking_on(tmp_path / "run")


def test_the_process_is_the_job_and_has_no_child(tmp_path: Path) -> None:
    terminal = start(
        tmp_path,
        """
train(20)
print("tty", [os.isatty(fd) for fd in (0, 1, 2)], os.getpid())
try:
    os.wait()
except ChildProcessError:
    print("no children")
print("name", input("your name? "))
raise SystemExit(7)
""",
    )
    terminal.wait_for("your name?")
    terminal.read(1.0)  # a line that has not ended is left alone
    assert any(line.startswith("your name?") for line in terminal.lines())
    terminal.type("Ada\r")
    assert terminal.wait() == 7
    terminal.close()
    written = terminal.history() + terminal.lines()
    assert f"tty [True, True, True] {terminal.pid}" in written
    assert "no children" in written
    assert "your name? Ada" in written
    assert "name Ada" in written


ENDINGS = {
    "Ctrl-C": ("train(400)", "\x03", -signal.SIGINT, "KeyboardInterrupt"),
    "Ctrl-C that is taken for something else": (
        """
signal.signal(signal.SIGINT, lambda *_: (print("saving"), sys.exit(3)))
train(400)
""",
        "\x03",
        3,
        "saving",
    ),
    "Ctrl-C that is ignored": (
        """
signal.signal(signal.SIGINT, lambda *_: print("not now"))
train(90)
print("the end")
""",
        "\x03",
        0,
        "the end",
    ),
    "an exception": ("train(20)\nraise ValueError('diverged')", "", 1, "ValueError: diverged"),
    "a crash": ("train(20)\nos.abort()", "", -signal.SIGABRT, "step 19 done"),
    "SIGKILL": (
        "train(20)\nos.kill(os.getpid(), signal.SIGKILL)",
        "",
        -signal.SIGKILL,
        "step 19 done",
    ),
}


@pytest.mark.parametrize(
    "ending",
    [each if each == "Ctrl-C" else pytest.param(each, marks=pytest.mark.slow) for each in ENDINGS],
)
def test_it_ends_as_the_job_does(ending: str, tmp_path: Path) -> None:
    job, typed, code, words = ENDINGS[ending]
    terminal = start(tmp_path, job)
    terminal.wait_for("trend" if typed else "highest")
    if typed:
        terminal.type(typed)
    assert terminal.wait() == code
    terminal.close()  # waits until nobody has it open
    assert any(words in line for line in terminal.history() + terminal.lines())
    assert terminal.margins is None
    assert rule(terminal) == -1
    assert not looking_on(tmp_path / "run")


def test_sigterm_to_the_process_alone(tmp_path: Path) -> None:
    terminal = start(tmp_path, "train(400)")
    terminal.wait_for("highest")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.wait() == -signal.SIGTERM
    terminal.close()
    assert terminal.margins is None


@pytest.mark.slow
def test_who_looks_on_is_killed(tmp_path: Path) -> None:
    terminal = start(tmp_path, "train(60)")
    terminal.wait_for("highest")
    others = [pid for pid in looking_on(tmp_path / "run") if pid != terminal.pid]
    assert len(others) == 1
    os.kill(others[0], signal.SIGKILL)
    terminal.wait_for("step 59 done")
    assert terminal.wait() == 0
    terminal.close()


@pytest.mark.slow
def test_a_fault_of_ours_is_one_line(tmp_path: Path) -> None:
    """A stream that is damaged while the job runs: no more is said of it, and the job goes on."""
    terminal = start(
        tmp_path,
        """
import glob
train(20)
(stream,) = glob.glob("run/*/marks.arrow")
with open(stream, "r+b") as file:
    file.seek(0, 2)
    file.write(b"\\x00" * 10_000)
train(40)
os._exit(0)
""",
    )
    terminal.wait_for("highest")
    assert terminal.wait() == 0
    terminal.close()
    assert b"Traceback" not in terminal.written
    assert terminal.margins is None


@pytest.mark.slow
def test_another_size(tmp_path: Path) -> None:
    terminal = start(tmp_path, "train(250)")
    terminal.wait_for("trend")
    terminal.resize(30, 70)
    terminal.read(3.0)
    lines = terminal.lines()
    top = rule(terminal)
    assert top == 30 - 6
    assert lines[top].endswith("─")
    assert len(lines[top]) == 69
    terminal.resize(9, 70)  # too small: nothing is in the way of the job
    terminal.read(3.0)
    assert terminal.margins is None
    terminal.type("\x03")
    terminal.wait()
    terminal.close()


@pytest.mark.slow
def test_ctrl_z_and_on_again(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", TRAINING + "train(100)")
    terminal = Terminal(["bash", "--norc", "-i"], cwd=tmp_path, env={"PS1": "prompt> "})
    terminal.wait_for("prompt>")
    terminal.type(" ".join(MEMLENS) + " train.py\r")
    terminal.wait_for("highest")
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.read(1.0)
    assert terminal.margins is None  # the shell has the whole terminal
    assert rule(terminal) == -1
    terminal.type("fg\r")
    deadline = time.monotonic() + 20
    while rule(terminal) < 0 and time.monotonic() < deadline:
        terminal.read(0.2)
    assert rule(terminal) > 0
    terminal.wait_for("memlens: recorded")
    terminal.type("echo code $?\r")
    terminal.wait_for("code 0")
    terminal.type("exit\r")
    terminal.wait()
    terminal.close()
    steps = [line for line in terminal.history() + terminal.lines() if line.endswith(" done")]
    assert steps == [f"step {number} done" for number in range(100)]


@pytest.mark.slow
def test_ranks_of_torchrun(tmp_path: Path) -> None:
    write_script(
        tmp_path / "ddp.py",
        """
import time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(512, 512))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    model(torch.randn(64 * (rank + 1), 512)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.1)
dist.destroy_process_group()
""",
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    terminal = Terminal([*MEMLENS, "--", *torchrun, "ddp.py"], cwd=tmp_path)
    terminal.wait_for("rank 1 is the highest", 120)
    terminal.wait_for("▇", 60)
    lines = terminal.lines()
    top = rule(terminal)
    assert [line.split()[:2] for line in lines[top + 1 : top + 3]] == [["rank", "0"], ["rank", "1"]]
    assert "rank 1 is the highest" in lines[top + 3]
    assert terminal.wait(120) == 0
    terminal.close()
    assert terminal.margins is None
    shown = terminal.written.decode()
    for rank in memlens.load(tmp_path / "run").ranks:
        assert format_bytes(rank.peak().allocated_bytes) in shown
