"""The disk is full, or the folder is gone: said once, and the training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.jobs import STEPS, ours, run_memlens, run_plain, theirs, write_script

import memlens

# What a full disk looks like, for one process: no file may grow beyond a limit (EFBIG).
FULL = """
import resource
def fill(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""
TRAINS = """
import time
def train_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        train(1)
"""


def test_the_disk_is_full_in_the_middle(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        STEPS + FULL + TRAINS + "train_for(1)\nfill(5000)\ntrain_for(1)\nprint('trained')",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    assert theirs(job.stderr) == []
    failed, recorded = ours(job.stderr)
    assert "recording stopped there and the capture is partial; the training goes on" in failed
    assert "File too large" in failed
    assert recorded.startswith("memlens: recorded")
    [rank] = memlens.load(tmp_path / "run").ranks
    assert rank.events > 100
    assert not rank.coverage.complete
    timeline = rank.timeline()
    assert sum(held[-1] for held in timeline.categories.values()) == timeline.allocated_bytes[-1]


def test_the_disk_is_full_from_the_start(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", FULL + "fill(0)" + STEPS + "train(3)\nprint('trained')")

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    [line] = job.stderr.splitlines()
    assert line.endswith("; the training goes on")
    assert "File too large" in line


def test_the_disk_is_full_at_the_end(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", STEPS + FULL + "train(3)\nfill(0)\nprint('trained')")

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    assert theirs(job.stderr) == []
    assert ours(job.stderr)[0].startswith("memlens: closing failed (")
    [rank] = memlens.load(tmp_path / "run").ranks  # empty, but it opens
    assert not rank.coverage.complete


@pytest.mark.parametrize("when", ["before torch", "before the first step", "while it trains"])
def test_the_folder_is_removed(when: str, tmp_path: Path) -> None:
    remove = "import shutil; shutil.rmtree('run')\n"
    beginning = remove if when == "before torch" else ""
    middle = remove if when == "before the first step" else ""
    end = remove if when == "while it trains" else ""
    write_script(
        tmp_path / "train.py",
        f"{beginning}{STEPS}{TRAINS}{middle}train_for(1)\n{end}train_for(1)\nprint('trained')",
    )

    job = run_memlens("run", "--out", "run", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained\n"), job.stderr
    assert theirs(job.stderr) == []
    [line] = ours(job.stderr)  # once, and no word of how to read what is not there
    assert "No such file" in line
    assert not (tmp_path / "run").exists()


def test_memlens_profile_with_a_full_disk(tmp_path: Path) -> None:
    write_script(
        tmp_path / "train.py",
        "import memlens"
        + STEPS
        + FULL
        + TRAINS
        + """
with memlens.profile(out="run") as session:
    train_for(1)
    fill(5000)
    train_for(1)
print("trained", session.capture.ranks[0].coverage.complete)
hooks = torch.nn.modules.module._global_forward_hooks
print("left", len(hooks))
""",
    )

    job = run_plain("python", "train.py", cwd=tmp_path)

    assert (job.returncode, job.stdout) == (0, "trained False\nleft 0\n"), job.stderr
    [line] = job.stderr.splitlines()
    assert line.endswith("the training goes on")
