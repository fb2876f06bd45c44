"""Runs `sharded_job.py` on several real processes on the CPU, and some of its ranks simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.planning.sharded_job import START, point
from tests.support.jobs import run_memlens
from tests.support.points import held_at

import memlens
from memlens.capture import RankCapture

__all__ = ["JOB", "TIMEOUT_S", "Ran", "assert_alike", "really_and_simulated"]

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


def assert_alike(ranks: Mapping[int, Ran], place: int, moment: int) -> None:
    """What each rank holds of every kind since the beginning of a configuration is the same.

    Args:
        ranks: as they ran.
        place: which configuration.
        moment: after backward, or after the step.
    """
    for number, rank in ranks.items():
        real, simulated = (
            held_at(each, point(place, START), point(place, moment))
            for each in (rank.real, rank.simulated)
        )
        assert simulated == real, f"rank {number}"
        assert any(real.values())
