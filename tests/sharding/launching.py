"""Starts the jobs of this folder on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["found_by_ranks"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def found_by_ranks(job: str, processes: int, *arguments: str) -> dict[int, Any]:
    """What each rank of a job printed after the word `found`.

    Args:
        job: name of a file in this folder.
        processes: how many ranks.
        arguments: of the job.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            "--nproc-per-node",
            str(processes),
            str(HERE / job),
            *arguments,
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),  # for `tests.sharding`
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    # Ranks write to one pipe, and may do so in the middle of each other's lines.
    texts = done.stdout.split("found ")[1:]
    found = [json.JSONDecoder().raw_decode(text)[0] for text in texts]
    assert len(found) == processes
    return {rank: answers for rank, answers in found}
