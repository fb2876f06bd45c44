"""The ranks of a run, each followed as it grows."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlens.disk.format import RANK_FILE
from memlens.errors import CaptureError
from memlens.live.follow import DeviceState, RankFollower
from memlens.watching.beside import is_running

__all__ = ["RankView", "Ranks"]


@dataclass(frozen=True)
class RankView:
    """What is known of one rank, of one device."""

    rank: int
    state: DeviceState

    @property
    def step(self) -> int:
        """Which training step it is in."""
        return self.state.now.step

    @property
    def peak_bytes(self) -> int:
        """The highest so far."""
        return self.state.peak.allocated_bytes


class Ranks:
    """Follows whatever appears in a run's folder.

    Args:
        run: the folder.
        everywhere: ranks on other hosts as well, of which there may be thousands.
    """

    def __init__(self, run: Path, *, everywhere: bool = False) -> None:
        self._run = run
        self._host = socket.gethostname()
        self._everywhere = everywhere
        self._followers: dict[Path, RankFollower | None] = {}
        self.problem: str | None = None
        """Why a rank can not be followed."""

    def __len__(self) -> int:
        """How many are followed."""
        return sum(follower is not None for follower in self._followers.values())

    def poll(self) -> bool:
        """Read what is new; whether anything was."""
        changed = False
        for path in sorted(self._run.glob(f"*/{RANK_FILE}")):
            if path.parent not in self._followers:
                self._begin(path.parent)
        for folder, follower in self._followers.items():
            if follower is None:
                continue
            try:
                changed |= follower.poll()
            except CaptureError as error:
                self._lose(folder, error)
                changed = True
        return changed

    def _begin(self, folder: Path) -> None:
        try:
            follower = RankFollower(folder)
        except CaptureError as error:
            self._lose(folder, error)
            return
        mine = follower.header.get("host") == self._host
        self._followers[folder] = follower if mine or self._everywhere else None

    def _lose(self, folder: Path, error: CaptureError) -> None:
        self._followers[folder] = None
        self.problem = f"{folder.name} is no longer followed: {error}"

    def have_ended(self) -> bool:
        """Whether no rank records any more, as far as one can tell from here."""
        return bool(self._followers) and not any(
            self._records(follower.header)
            for follower in self._followers.values()
            if follower is not None
        )

    def _records(self, header: dict[str, Any]) -> bool:
        if header["closed"]:
            return False
        if header.get("host") != self._host or not isinstance(header.get("pid"), int):
            return True
        return is_running(header["pid"])

    def views(self) -> list[RankView]:
        """What is known of each, by rank; of a rank that was started again, the last start."""
        followed = [each for each in self._followers.values() if each is not None]
        trained = [each for each in followed if each.header["trains"]] or followed
        last: dict[int, RankFollower] = {}
        for follower in sorted(trained, key=lambda each: int(each.header["started_ns"])):
            number = follower.header["rank"]
            last[0 if number is None else int(number)] = follower
        return [
            RankView(rank, state)
            for rank, follower in sorted(last.items())
            for state in follower.states
        ]
