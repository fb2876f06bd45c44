"""A capture answers questions; nothing else in memlens parses one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlens.answers import (
    RunInfo,
)
from memlens.disk.format import RANK_FILE, RUN_FILE
from memlens.disk.headers import RUN_FIELDS, read_header
from memlens.disk.lazy import RankFolder
from memlens.disk.numbering import Claim, number_ranks
from memlens.errors import CaptureError
from memlens.options import is_url
from memlens.rank import RankCapture

__all__ = ["Capture", "RankCapture", "Unreadable", "load", "look_at"]


@dataclass(frozen=True)
class Unreadable:
    """A process whose folder can not be read."""

    rank: int | None
    """None: not even that is known."""
    problem: str
    """Why, in one sentence."""


def load(run: str | os.PathLike[str]) -> Capture:
    """Open a run: its folder, or a URL that fsspec reaches, from which it is copied into a cache.

    A rank's streams are read when it is first asked something; with thousands of ranks, `release` each
    after it. Where there is one rank only, it is read at once.

    Raises:
        CaptureError: it is not a capture, is damaged, holds no rank that can be read, or has another
            version. (Of several ranks, a damaged one raises when it is asked.)
    """
    if is_url(run):
        from memlens.disk.remote import fetch_run

        run = fetch_run(str(run))
    capture, ranks = _open(Path(run))
    if len(ranks) + len(capture.unreadable) == 1:
        _ = ranks[0].data  # whoever opens a damaged capture learns it here
    return capture


def look_at(folder: Path) -> Capture:
    """Open a run's folder as `load` does, but read no stream before it is asked for.

    Raises:
        CaptureError: it is not a capture, or the header of no rank can be read.
    """
    return _open(folder)[0]


def _open(folder: Path) -> tuple[Capture, list[RankFolder]]:
    """The run, and all that recorded something in it."""
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
    ranks: list[RankFolder] = []
    unreadable: list[Unreadable] = []
    for path in folders:
        try:
            ranks.append(RankFolder(path))
        except CaptureError as error:
            if len(folders) == 1:
                raise
            unreadable.append(Unreadable(_rank_of(path), str(error)))
    if not ranks:
        raise CaptureError(unreadable[0].problem)
    # A process that merely starts those who train is none of them.
    trained = [rank for rank in ranks if rank.header["trains"]]
    return Capture(folder, header, trained or ranks, unreadable), ranks


class Capture:
    """A run: what every rank recorded. Made by `memlens.load`, or `session.capture`."""

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        ranks: Sequence[RankFolder],
        unreadable: Sequence[Unreadable] = (),
    ) -> None:
        self.path = folder
        ranks = sorted(ranks, key=lambda rank: rank.header["started_ns"])
        first = ranks[0].header
        numbered = number_ranks(
            [_claim(rank.header) for rank in ranks],
            [each.rank for each in unreadable if each.rank is not None],
        )
        captures = [
            RankCapture(rank, number, device, launch)
            for rank, number, launch in zip(ranks, numbered.numbers, numbered.launches, strict=True)
            for device in rank.devices
        ]
        self.ranks: tuple[RankCapture, ...] = tuple(sorted(captures, key=lambda item: item.rank))
        """One per rank and device."""
        self.unreadable: tuple[Unreadable, ...] = tuple(unreadable)
        """Ranks whose header can not be read, so that nothing is known of them."""
        self.launches = max(numbered.launches) + 1
        """How often the job was started in this folder; by the launcher after a failure, say."""
        self.is_whole = not numbered.missing and numbered.agree and not unreadable
        """Every rank of the last launch has a capture that can be opened."""
        self.info = RunInfo(
            path=str(folder),
            name=folder.absolute().name,
            format_version=header["version"],
            source=first["source"],
            world_size=numbered.world_size or len(ranks),
            command=tuple(header["command"]),
            created_ns=header["created_ns"],
            torch_version=first["torch"],
            memlens_version=header["memlens"],
        )
        problems = list(numbered.problems)
        if not any(rank.header["trains"] for rank in ranks):
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


def _claim(header: dict[str, Any]) -> Claim:
    """What a process said of itself."""
    if header["source"] == "simulated":  # those that were simulated stand for all
        return Claim(header["rank"], 0)
    return Claim(
        rank=header["rank"],
        world_size=header["world_size"],
        launch=header.get("launch"),
        restart=header.get("restart") or 0,
        started_ns=header["started_ns"],
        ended_ns=header.get("ended_ns"),
    )


def _rank_of(folder: Path) -> int | None:
    """Which rank a folder is of, by its name."""
    match = re.fullmatch(r"rank-(\d{1,9})(-\d+)?", folder.name)
    return int(match[1]) if match else None
