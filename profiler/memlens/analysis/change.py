"""One amount of memory in two captures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Change", "total"]


@dataclass(frozen=True)
class Change:
    """The bytes of one thing in capture A and in capture B; 0 where it is not there."""

    a_bytes: int
    b_bytes: int

    @property
    def difference_bytes(self) -> int:
        """B less A: positive when B holds more."""
        return self.b_bytes - self.a_bytes

    @property
    def difference_percent(self) -> float | None:
        """The difference in per cent of A; None when only B has it."""
        if self.a_bytes == self.b_bytes:
            return 0.0
        return 100 * self.difference_bytes / self.a_bytes if self.a_bytes else None


def total(changes: Iterable[Change]) -> Change:
    """Several amounts as one."""
    a_bytes = b_bytes = 0
    for change in changes:
        a_bytes += change.a_bytes
        b_bytes += change.b_bytes
    return Change(a_bytes, b_bytes)
