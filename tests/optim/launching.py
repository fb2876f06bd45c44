"""Starts the jobs of this folder on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["found_by"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def found_by(job: str, *arguments: str) -> Any:
    """What a job on two processes printed after the word `found`.

    Args:
        job: name of a file in this folder.
        arguments: of the job.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / job), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),  # for `tests.optim`
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
    return json.loads(line.removeprefix("found "))
