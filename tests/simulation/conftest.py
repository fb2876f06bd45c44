"""Runs scripts in a process that simulates a card, and reads what came of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from memlens.capture import Capture, RankCapture, load
from memlens.catalogue.gpus import find_gpu
from memlens.disk.runs import create_run
from memlens.launch.environment import job_environment
from memlens.options import Options
from memlens.planning.simulate import simulation_settings

__all__ = ["Simulate", "SimulatedJob", "simulate"]

_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class SimulatedJob:
    """A script that has run in a simulation."""

    run: Path
    output: str
    """What it printed."""
    errors: str

    @property
    def capture(self) -> Capture:
        """What was recorded of it."""
        return load(self.run)

    @property
    def rank(self) -> RankCapture:
        """Its only rank."""
        capture = self.capture
        assert len(capture.ranks) == 1
        assert capture.problems == ()
        return capture.ranks[0]


def simulate(
    script: str,
    folder: Path,
    *,
    gpu: str = "H100 80GB",
    steps: int = 1_000_000,
    allocator: str = "",
    environment: Mapping[str, str] | None = None,
    stacks: bool = False,
    succeeds: bool = True,
) -> SimulatedJob:
    """Run a script as `memlens plan` does.

    Args:
        script: its text; `tests.support` can be imported in it.
        folder: gets the script (`job.py`) and the capture (`run`).
        gpu: the card that `cuda` is.
        steps: the job ends after so many.
        allocator: settings as in PYTORCH_CUDA_ALLOC_CONF.
        environment: variables of the job besides.
        stacks: record Python stacks.
        succeeds: whether it must end well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.py"
    file.write_text(dedent(script))
    options = Options(out=folder / "run", device="simulated", stacks=stacks)
    run = create_run(options, command=(str(file),))
    job = job_environment(run, options, main=False)
    job["PYTHONPATH"] += os.pathsep + str(_REPOSITORY)
    job.update(simulation_settings(find_gpu(gpu), steps, allocator))
    job.update(MEMLENS_DEBUG="1", OMP_NUM_THREADS="1", **(environment or {}))
    done = subprocess.run(
        [sys.executable, str(file)],
        env=job,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not succeeds or done.returncode == 0, done.stderr[-4000:]
    return SimulatedJob(run, done.stdout, done.stderr)


Simulate = Callable[..., SimulatedJob]


@pytest.fixture(name="simulate")
def simulate_here(tmp_path: Path) -> Simulate:
    """`simulate` in the test's own folder."""
    return lambda script, **settings: simulate(script, tmp_path, **settings)
