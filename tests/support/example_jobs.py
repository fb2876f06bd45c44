"""Start the examples the way a person would, for tests that run them with and without memlens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["EXAMPLES", "run"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_SCRIPTS = Path(sys.executable).parent


def run(command: list[str], folder: Path, *, one_thread: bool) -> subprocess.CompletedProcess[str]:
    """Run a command the way a shell in this environment would."""
    # Options set for the tests' own session must not decide what is recorded here.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMLENS_")}
    environment["PATH"] = os.pathsep.join([str(_SCRIPTS), environment.get("PATH", os.defpath)])
    environment["HF_HUB_OFFLINE"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = ""  # tests know the sizes of the CPU
    # Accelerate imports DeepSpeed where it is installed, which otherwise says with a time of day which
    # device it has found.
    environment["DS_ACCELERATOR"] = "cpu"
    if one_thread:
        # Two processes with two threads each would fight for two cores.
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,  # on a machine that does much else, the processes of a job start slowly
        check=False,
    )
