"""`memlens run` as the job sees it: no difference."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from tests.support.jobs import (
    STEPS,
    clean_environment,
    ours,
    run_both,
    run_memlens,
    start_memlens,
    theirs,
    write_script,
)

import memlens

LOOK_AROUND = """
import json, os, sys
import torch

model = torch.nn.Linear(4, 4)
model(torch.ones(2, 4)).sum().backward()
spec = __spec__ and [__spec__.name, __spec__.origin]
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv[1:], "name": __name__, "file": __file__,
    "package": __package__, "spec": spec, "cwd": os.getcwd(), "path": sys.path,
    "executable": sys.executable, "main": sys.modules["__main__"].__dict__ is globals(),
    "flags": list(sys.flags), "stdin": sys.stdin.read(), "tty": sys.stdout.isatty(),
    "torch": [type(torch.__loader__).__name__, torch.__spec__.loader is torch.__loader__],
    "threads": torch.get_num_threads(), "profile": sys.getprofile() is None,
    "signals": {name.name: str(signal) for name, signal in
        ((s, __import__("signal").getsignal(s)) for s in __import__("signal").valid_signals())
        if hasattr(name, "name")},
    "finders": [type(finder).__name__ for finder in sys.meta_path],
    "variables": sorted(name for name in os.environ if not name.startswith("MEMLENS_")),
    "inherited": sorted(name for name in os.environ if name.startswith("MEMLENS_")),
}))
print("and to stderr", file=sys.stderr)
"""

OWN_VARIABLES = [
    "MEMLENS_DEVICE",
    "MEMLENS_MAIN_PID",
    "MEMLENS_OOM_ONLY",
    "MEMLENS_RUN",
    "MEMLENS_STACKS",
    "MEMLENS_STACK_DEPTH",
    "MEMLENS_STEPS",
]


def rank_folders(run: Path) -> list[str]:
    return sorted(path.parent.name for path in run.glob("*/rank.json"))


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--lr", "1e-3", "-m", "x", "--", "--out", "y"],
        ["nested/deep.py"],
        ["-m", "nested.deep", "--out", "z", "--help"],
        ["-m", "nested", "-x"],
    ],
    ids=lambda words: " ".join(words),
)
def test_the_script_sees_what_it_would_see_without_memlens(
    words: list[str], tmp_path: Path
) -> None:
    for name in ("train.py", "nested/deep.py", "nested/__main__.py"):
        write_script(tmp_path / name, LOOK_AROUND)
    for name in ("profiler.py", "integrations/__init__.py", "memlens_integrations.py"):
        write_script(
            tmp_path / name, "raise RuntimeError('the folder beside the script is its own')"
        )
    # Given, as it is for memlens when the tests run from a checkout.
    path = {"PYTHONPATH": clean_environment().get("PYTHONPATH") or str(tmp_path / "none")}

    plain, job = run_both(words, cwd=tmp_path, stdin="a\nb", env=path)

    assert plain.returncode == job.returncode == 0, plain.stderr + job.stderr
    expected, seen = json.loads(plain.stdout), json.loads(job.stdout)
    assert seen.pop("inherited") == OWN_VARIABLES
    assert expected.pop("inherited") == []
    assert seen == expected
    assert theirs(job.stderr) == ["and to stderr"]
    assert memlens.load(tmp_path / "run").info.command == tuple(words)
    assert rank_folders(tmp_path / "run") == ["rank-00000"]


def test_the_process_itself_becomes_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "import os; print(os.getpid())")

    process = start_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert int(process.communicate(timeout=60)[0]) == process.pid


ENDINGS = {
    "exit(3)": ("raise SystemExit(3)", 3),
    "exit with text": ("raise SystemExit('no more data')", 1),
    "exception": ("raise ValueError('diverged')", 1),
    "_exit(5)": ("import os; os._exit(5)", 5),
    "SIGTERM to itself": ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    "abort": ("import os; os.abort()", -signal.SIGABRT),
    "in the middle of a forward": (
        """
        class Stop(torch.nn.Module):
            def forward(self, x):
                raise SystemExit(7)
        torch.nn.Sequential(torch.nn.Linear(64, 64), Stop())(torch.randn(8, 64))
        """,
        7,
    ),
    "in the middle of a backward": (
        """
        x = torch.ones(2, requires_grad=True)
        x.register_hook(lambda grad: 1 / 0)
        (x * 2).sum().backward()
        """,
        1,
    ),
}
CLOSED = {"exit(3)", "exit with text", "exception", "in the middle of a forward",
          "in the middle of a backward"}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_code_is_the_jobs_own(ending: str, tmp_path: Path) -> None:
    text, code = ENDINGS[ending]
    write_script(tmp_path / "train.py", STEPS + "train(3)\n" + dedent(text))

    plain, job = run_both(["train.py"], cwd=tmp_path)

    assert plain.returncode == job.returncode == code
    assert theirs(job.stderr) == plain.stderr.splitlines()
    # Told once, and only where Python ended in good order.
    assert len(ours(job.stderr)) == (1 if ending in CLOSED else 0)
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete == (ending in CLOSED), rank.coverage
    if ending in CLOSED:
        assert rank.events > 50


WAITS = (
    STEPS
    + """
import time
end = time.monotonic() + 1.2
while time.monotonic() < end:
    train(1)
print("ready", flush=True)
while True:
    train(1)
"""
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_job_as_it_would_without_memlens(
    number: signal.Signals, tmp_path: Path
) -> None:
    write_script(tmp_path / "train.py", WAITS)

    process = start_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    # The parent sees the signal itself, not an exit code that stands for it.
    assert process.returncode == -number
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.events > 100
    interrupted = number is signal.SIGINT
    assert rank.coverage.complete == interrupted, rank.coverage
    assert stderr.count("Traceback") == stderr.count("KeyboardInterrupt") == interrupted
    assert len(ours(stderr)) == interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_jobs_own_signal_handler_is_called(number: signal.Signals, tmp_path: Path) -> None:
    handler = f"""
import signal, sys
def end(number, frame):
    print("saving a checkpoint")
    sys.exit(9)
signal.signal({int(number)}, end)
"""
    write_script(tmp_path / "train.py", handler + WAITS)

    process = start_memlens("run", "--out", "run", "train.py", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)

    assert (process.returncode, stdout) == (9, "saving a checkpoint\n"), stderr
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.coverage.complete, rank.coverage


def test_binary_output_is_unchanged(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS + "import sys\ntrain(1)\nsys.stdout.buffer.write(bytes(range(256)) * 1000)",
    )

    job = subprocess.run(
        [sys.executable, "-m", "memlens", "run", "--out", "run", "train.py"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        timeout=60,
    )

    assert job.stdout == bytes(range(256)) * 1000


def test_the_last_line_says_how_to_read_the_run(tmp_path: Path) -> None:
    write_script(tmp_path / "sub folder/my train.py", STEPS + "train(2)")

    job = run_memlens("run", "sub folder/my train.py", cwd=tmp_path)

    assert job.returncode == 0
    [line] = job.stderr.splitlines()
    match = re.fullmatch(r"memlens: recorded ([\d,]+) events; read them with: (.*)", line)
    assert match is not None, line
    [run] = (tmp_path / "memlens-runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-my-train", run.name)
    assert match[2] == f"memlens report memlens-runs/{run.name}"
    report = run_memlens(*match[2].split()[1:], "--json", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    [rank] = json.loads(report.stdout)["ranks"]
    assert rank["events"] == int(match[1].replace(",", ""))


def test_two_runs_within_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", "pass")

    for _ in range(3):
        assert run_memlens("run", "train.py", cwd=tmp_path).returncode == 0

    assert len(list((tmp_path / "memlens-runs").glob("*-train*/run.json"))) == 3
