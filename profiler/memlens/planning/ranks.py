"""Which rank of how many is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from memlens.errors import UsageError

__all__ = ["Ranks", "refuse_launcher"]

_LAUNCHERS = frozenset({"torchrun", "deepspeed", "accelerate", "mpirun", "mpiexec", "srun"})


@dataclass(frozen=True)
class Ranks:
    """One rank stands for the others: they hold as much, but for what does not divide evenly."""

    world_size: int
    rank: int = 0

    def __post_init__(self) -> None:
        """Refuse a rank that there is not."""
        if not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"there is no rank {self.rank} of {self.world_size}; they are numbered from 0 to "
                f"{self.world_size - 1}"
            )

    @property
    def environment(self) -> dict[str, str]:
        """What a launcher would tell it: with one device, it is the first of its machine."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"rank": self.rank, "world_size": self.world_size}


def refuse_launcher(words: Sequence[str]) -> None:
    """A launcher would start all ranks itself.

    Raises:
        UsageError: the command starts with one.
    """
    if words and PurePath(words[0]).name in _LAUNCHERS:
        raise UsageError(
            f"--world-size simulates one rank, and {PurePath(words[0]).name} would start several: "
            "give the script without it"
        )
