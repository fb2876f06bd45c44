"""Where CUDA's driver puts what it is asked for: best fit among blocks of one size depends on it.

Not documented; seen in the histories of an H200 (driver 580). It takes stretches of addresses in
whole multiples of 32 MiB, each below the ones before, and puts what is asked for at the beginning. What
is left of a stretch serves later requests that fit, the one with the lowest address first.
"""

from __future__ import annotations

from bisect import insort

__all__ = ["DriverAddresses"]

PAGE_BYTES = 2 * 2**20
STRETCH_BYTES = 32 * 2**20
TOP = 0x7F00_0000_0000


class DriverAddresses:
    """Hands out addresses; those of memory that was given back are not used again.

    Args:
        top: below it.
    """

    def __init__(self, top: int = TOP) -> None:
        self._lowest = top // STRETCH_BYTES * STRETCH_BYTES
        self._left: list[tuple[int, int]] = []
        """Address and bytes of what is left of each stretch, in order."""

    def __call__(self, size_bytes: int, _stream: int) -> int:
        """An address for a request."""
        size = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
        place = next((n for n, (_, left) in enumerate(self._left) if left >= size), None)
        if place is not None:
            address, left = self._left.pop(place)
        else:
            left = -(-size // STRETCH_BYTES) * STRETCH_BYTES
            self._lowest -= left
            address = self._lowest
        if left > size:
            insort(self._left, (address + size, left - size))
        return address
