"""Why a request for memory failed: what it would have fitted but for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memlens.answers import OutOfMemory

__all__ = ["Fit", "Obstacle", "fit_of"]


class Obstacle(str, Enum):
    """What kept a request from being served."""

    FRAGMENTATION = "fragmentation"
    """There is enough, but not in one piece."""
    STREAMS = "streams"
    """There would be enough if other streams were done with what was given back."""
    LIMIT = "limit"
    """The device has enough, but the process may not take it."""
    SIZE = "size"
    """There is not enough, however it is arranged."""


@dataclass(frozen=True)
class Fit:
    """What a request met with."""

    obstacle: Obstacle
    missing_bytes: int
    """What more would have had to be free on the device (or within the limit)."""
    short_bytes: int
    """How much is missing even if all that is free were in one piece; 0: nothing."""
    outside_bytes: int
    """In use on the device, but not by this process's allocator."""


def fit_of(event: OutOfMemory) -> Fit | None:
    """Work out why; None for another rank's request."""
    if event.requested_bytes is None:
        return None
    within = event.device_free_bytes
    if event.limit_bytes is not None:
        within = min(within, max(0, event.limit_bytes - event.reserved_bytes))
    missing = max(0, event.requested_bytes - within)
    short = max(0, missing - event.free_pieces_bytes)
    if event.requested_bytes <= event.device_free_bytes and missing:
        obstacle = Obstacle.LIMIT
    elif not short:
        obstacle = Obstacle.FRAGMENTATION
    elif short <= event.pending_bytes:
        obstacle = Obstacle.STREAMS
    else:
        obstacle = Obstacle.SIZE
    used = event.device_total_bytes - event.device_free_bytes
    return Fit(obstacle, missing, short, max(0, used - event.reserved_bytes))
