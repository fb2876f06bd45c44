"""Starts the job of this folder, and reads what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memlens

__all__ = ["ROOT", "Trained", "train"]

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Trained:
    """What one rank of one configuration left."""

    name: str
    rank: int
    ranks: int
    folder: Path

    def _json(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.folder / f"{self.name}.{self.rank}.{kind}").read_text()
        )
        return found

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / f"{self.name}.{self.rank}"

    @property
    def capture(self) -> memlens.RankCapture:
        """What was recorded."""
        return memlens.load(self.run).ranks[0]

    @property
    def problems(self) -> list[str]:
        """What the capture lacks."""
        (header,) = self.run.glob("*/rank.json")
        found: list[str] = json.loads(header.read_text())["problems"]
        return found

    @property
    def version(self) -> str:
        """Of DeepSpeed."""
        found: str = self._json("json")["version"]
        return found.strip()

    @property
    def losses(self) -> list[float]:
        """Under memlens."""
        found: list[float] = self._json("json")["losses"]
        return found

    @property
    def plain_losses(self) -> list[float]:
        """Without."""
        found: list[float] = self._json("plain.json")["losses"]
        return found

    def time_ns(self, what: str, number: int = -1) -> int:
        """When a forward, backward or step had ended; the last one."""
        found: int = self._json("json")["times"][what][number]
        return found


def train(ranks: int, names: list[str], folder: Path, path: str = "") -> list[Trained]:
    """Train configurations, each on so many processes.

    Args:
        ranks: how many.
        names: of the configurations (see job.py).
        folder: where everything goes.
        path: where another DeepSpeed is.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("job.py")), str(ranks), str(folder), *names],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([path, str(ROOT)] if path else [str(ROOT)]),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [Trained(name, rank, ranks, folder) for name in names for rank in range(ranks)]
