"""Runs `sharded_job.py` on several real processes on the CPU, and some of its ranks simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.jobs import run_memlens

import memlens
from memlens.capture import RankCapture

__all__ = ["JOB", "TIMEOUT_S", "Ran", "really_and_simulated"]

JOB = str(Path(__file__).parent / "sharded_job.py")
TIMEOUT_S = 600


@dataclass(frozen=True)
class Ran:
    """One rank, both ways."""

    real: RankCapture
    simulated: RankCapture


def really_and_simulated(
    kind: str, folder: Path, world_size: int, ranks: Sequence[int]
) -> dict[int, Ran]:
    """Run all configurations of a kind.

    Args:
        kind: the job's argument.
        folder: gets the captures.
        world_size: how many processes.
        ranks: those to be simulated.
    """
    launcher = ("torchrun", "--standalone", "--nproc-per-node", str(world_size))
    recording = ("--device", "cpu", "--no-stacks", "--out", "real")
    done = run_memlens("run", *recording, "--", *launcher, JOB, kind, cwd=folder, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]
    real = memlens.load(folder / "real")
    assert real.problems == ()
    found = {}
    for rank in ranks:
        out = folder / f"simulated-{rank}"
        # All configurations one after another: no step is the last.
        words = (
            "--no-stacks",
            "--steps",
            "1000",
            "--world-size",
            str(world_size),
            "--rank",
            str(rank),
        )
        done = run_memlens(
            "plan", *words, "--out", str(out), JOB, kind, cwd=folder, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert f"rank {rank} of {world_size}" in done.stdout
        (simulated,) = memlens.load(out / "run").ranks
        found[rank] = Ran(real.rank(rank), simulated)
    return found
