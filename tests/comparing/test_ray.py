"""Trials on a Ray of our own, as on a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import run_memlens, start_memlens, write_script

# Its import puts a hook into the process, and leaves it there.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

SCRIPT = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
x = torch.randn(2, 64)
for step in range(4):
    (model(x) - x).square().mean().backward()
    assert type(optimizer).__name__ != "RMSprop", "not with this one"
    optimizer.step()
    optimizer.zero_grad()
"""


def compare(*words: str, cwd: Path) -> dict[str, dict[str, Any]]:
    done = run_memlens("compare", "--json", "train.py", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["variants"]}


def test_the_same_results_as_here(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", SCRIPT)
    names = "adamw,sgd,rmsprop,adamw-r"
    there = compare("--optimizer", names, "--ray", "local", "--ray-cpus", "1", cwd=tmp_path)
    assert list(there) == names.split(",")
    assert there["rmsprop"]["status"] == "failed"
    assert there["rmsprop"]["reason"] == "AssertionError: not with this one"
    # What was found there is used here, and what is run here has the same peaks.
    again = compare("--optimizer", names, cwd=tmp_path)
    assert [each["reused"] for each in again.values()] == [True, True, False, True]
    here = compare("--optimizer", "adamw,sgd,adamw-r", "--fresh", cwd=tmp_path)
    for name, each in here.items():
        assert not each["reused"]
        assert each["peak"]["categories"] == there[name]["peak"]["categories"]
        assert each["final_loss"] == there[name]["final_loss"]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there(scheme: str, tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{probe.getsockname()[1]}"

        done = run_memlens(
            *("compare", "train.py", "--optimizer", "adamw", "--ray", address), cwd=tmp_path
        )

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"memlens: no Ray cluster at {address}: Connection refused; "
        "start one with `ray start --head`, or give --ray local"
    )


def test_an_interruption_ends_the_jobs(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        "import os, time, torch\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(120)",
    )
    words = ("compare", "train.py", "--optimizer", "sgd", "--ray", "local")
    process = start_memlens(*words, cwd=tmp_path)
    deadline = time.time() + 90
    while not (tmp_path / "pid").exists() and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    job = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)


def test_searches_for_the_fewest_gpus(tmp_path: Path) -> None:
    """One for each optimizer, side by side, with the answers that they give here."""
    script = SCRIPT.replace("x = ", "model.cuda()\nx = ").replace("64)\nfor", "64).cuda()\nfor")
    write_script(tmp_path / "train.py", script)
    words = ("plan", "--fit", "--gpu", "24GB", "--json", "--optimizer", "adamw,sgd,rmsprop")
    answers = []
    for where in (("--ray", "local", "--ray-cpus", "1", "--out", "there"), ("--out", "here")):
        done = run_memlens(*words, *where, "train.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["answers"])
    there, here = answers
    assert [each["gpus"] for each in there] == [1, 1, None]
    assert "not with this one" in there[2]["failed"]
    for one, other in zip(there, here, strict=True):
        assert one["reserved_peak_bytes"] == other["reserved_peak_bytes"]
