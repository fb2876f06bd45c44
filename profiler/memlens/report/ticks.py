"""Which numbers to write along an axis."""

from __future__ import annotations

__all__ = ["stride"]


def stride(at_least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least this."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if factor * unit >= at_least:
                return factor * unit
        unit *= 10
