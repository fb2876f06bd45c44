"""A capture answers questions; nothing else in memlens parses one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from memlens.answers import (
    RunInfo,
)
from memlens.disk.format import RANK_FILE, RUN_FILE
from memlens.disk.headers import RUN_FIELDS, read_header
from memlens.disk.numbering import number_ranks
from memlens.disk.reader import RankData, read_rank
from memlens.errors import CaptureError
from memlens.rank import RankCapture

__all__ = ["Capture", "RankCapture", "load"]


def load(run: str | os.PathLike[str]) -> Capture:
    """Open a run's folder.

    Raises:
        CaptureError: it is not a capture, is damaged, holds no rank, or has another version.
    """
    folder = Path(run)
    if not os.path.isdir(folder):
        raise CaptureError(f"no such run folder: {folder}")
    header = read_header(folder / RUN_FILE, RUN_FIELDS, what="run")
    folders = sorted({path.parent for path in folder.glob("*/*.arrow")})
    folders += sorted({path.parent for path in folder.glob(f"*/{RANK_FILE}")} - set(folders))
    if not folders:
        raise CaptureError(
            f"{folder} holds no rank: no process of the job trained a model with torch (or it was "
            "stopped before it did, or its Python ignores PYTHONPATH: -I, -E, -S)"
        )
    ranks = [(path, read_rank(path)) for path in folders]
    # A process that merely starts those who train is none of them.
    trained = [item for item in ranks if item[1].header["trains"]]
    return Capture(folder, header, trained or ranks)


class Capture:
    """A run: what every rank recorded. Made by `memlens.load`, or `session.capture`."""

    def __init__(
        self, folder: Path, header: dict[str, Any], ranks: list[tuple[Path, RankData]]
    ) -> None:
        self.path = folder
        ranks = sorted(ranks, key=lambda item: item[1].header["started_ns"])
        first = ranks[0][1].header
        world_size = max(data.header["world_size"] for _, data in ranks)
        expected = world_size
        if first["source"] == "simulated":  # those that were simulated stand for all
            world_size, expected = len(ranks), 0
        numbers, problems = number_ranks([data.header["rank"] for _, data in ranks], expected)
        captures = [
            RankCapture(data, number, device)
            for (_, data), number in zip(ranks, numbers, strict=True)
            for device in _used_devices(data)
        ]
        self.ranks: tuple[RankCapture, ...] = tuple(sorted(captures, key=lambda item: item.rank))
        """One per rank and device."""
        self.info = RunInfo(
            path=str(folder),
            name=folder.absolute().name,
            format_version=header["version"],
            source=first["source"],
            world_size=world_size,
            command=tuple(header["command"]),
            created_ns=header["created_ns"],
            torch_version=first["torch"],
            memlens_version=header["memlens"],
        )
        if not any(data.header["trains"] for _, data in ranks):
            problems.append("no training was seen: no module, backward or optimizer")
        self.problems: tuple[str, ...] = tuple(problems)
        """What is wrong with the run as a whole; ranks have problems of their own."""

    def rank(self, number: int) -> RankCapture:
        """The capture of one rank (of its first device).

        Raises:
            CaptureError: there is none.
        """
        for item in self.ranks:
            if item.rank == number:
                return item
        held = ", ".join(str(item.rank) for item in self.ranks)
        raise CaptureError(f"{self.path} holds no rank {number}, only {held}")


def _used_devices(data: RankData) -> list[int]:
    """Positions of the devices that anything was recorded of; the first one if of none."""
    return sorted(set(np.unique(data.events["device"]).tolist())) or [0]
