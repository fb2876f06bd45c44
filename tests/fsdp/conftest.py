"""Runs of the job of this folder: one for each number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.support.jobs import clean_environment

import memlens
from memlens.rank import RankCapture

ROOT = Path(__file__).parents[2]


@dataclass
class Run:
    """What the ranks of one run have left."""

    folder: Path
    world_size: int
    seen: list[dict[str, Any]] = field(default_factory=list)
    """Per rank and way: losses without and with memlens, and whether torch was as before."""

    def rank(self, way: str, rank: int) -> RankCapture:
        """A rank's capture of one way."""
        [found] = memlens.load(self.folder / f"{way}-{rank}").ranks
        return found


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda count: f"{count} ranks")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All ways, on one, two and four ranks."""
    return run_of(request.param, tmp_path_factory.mktemp("run"))


def run_of(world_size: int, folder: Path) -> Run:
    """Start the job."""
    job = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(world_size)),
            *("-m", "tests.fsdp.job", str(folder)),
        ],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert job.returncode == 0, job.stderr[-3000:]
    run = Run(folder, world_size)
    run.rank = cache(run.rank)  # type: ignore[method-assign]
    for rank in range(world_size):
        run.seen.append(json.loads((folder / f"rank-{rank}.json").read_text()))
    return run
