"""Starts the jobs of this folder on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["found_by_ranks"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def found_by_ranks(job: str, processes: int, *arguments: str) -> dict[int, Any]:
    """What each rank of a job wrote into the folder FOUND.

    Args:
        job: name of a file in this folder.
        processes: how many ranks.
        arguments: of the job.
    """
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    with tempfile.TemporaryDirectory() as found:
        done = subprocess.run(
            [sys.executable, *launcher, str(HERE / job), *arguments],
            env={
                **os.environ,
                "FOUND": found,
                "PYTHONPATH": str(ROOT),  # for `tests.sharding`
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return {
            rank: json.loads(Path(found, f"{rank}.json").read_text()) for rank in range(processes)
        }
