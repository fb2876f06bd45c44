"""Why a request for memory failed: what it would have fitted but for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from memlens.allocator.settings import SMALL_SEGMENT_BYTES
from memlens.answers import OutOfMemory

__all__ = ["Fit", "Obstacle", "fit_of"]


class Obstacle(str, Enum):
    """What kept a request from being served."""

    FRAGMENTATION = "fragmentation"
    """There is enough, but not in one piece."""
    STREAMS = "streams"
    """There would be enough if other streams were done with what was given back."""
    POOLS = "pools"
    """There would be enough, but it is kept for other streams, or for requests of another size."""
    LIMIT = "limit"
    """The device has enough, but the process may not take it."""
    SIZE = "size"
    """There is not enough, however it is arranged."""


@dataclass(frozen=True)
class Fit:
    """What a request met with."""

    obstacle: Obstacle
    left_bytes: int | None
    """What the process may still take from the device, if it had that; None: all."""
    missing_bytes: int
    """What more would have had to be free on the device (or within the limit)."""
    short_bytes: int
    """How much is missing even if all that is free for it were in one piece; 0: nothing."""
    outside_bytes: int
    """In use on the device, but not by this process's allocator."""
    usable: tuple[int, ...]
    """Bytes of the pieces in the cache that it could be served from, largest first."""
    elsewhere_bytes: int
    """What else lies free in the cache."""


def fit_of(event: OutOfMemory) -> Fit | None:
    """Work out why; None for another rank's request."""
    if event.requested_bytes is None:
        return None
    within, left = event.device_free_bytes, None
    if event.limit_bytes is not None:
        left = max(0, event.limit_bytes - event.reserved_bytes)
        within = min(within, left)
    usable = _usable(event, event.requested_bytes)
    elsewhere = sum(piece[0] for piece in event.free_pieces) - sum(usable)
    missing = max(0, event.requested_bytes - within)
    short = max(0, missing - sum(usable))
    if event.requested_bytes <= event.device_free_bytes and missing:
        obstacle = Obstacle.LIMIT
    elif not short:
        obstacle = Obstacle.FRAGMENTATION
    elif short <= event.pending_bytes:
        obstacle = Obstacle.STREAMS
    elif short <= event.pending_bytes + elsewhere:
        obstacle = Obstacle.POOLS
    else:
        obstacle = Obstacle.SIZE
    used = event.device_total_bytes - event.device_free_bytes
    outside = max(0, used - event.reserved_bytes)
    return Fit(obstacle, left, missing, short, outside, usable, elsewhere)


def _usable(event: OutOfMemory, requested: int) -> tuple[int, ...]:
    """Free pieces of the request's pool and stream; where the stream is not known, of that with most.

    Where a thousand pieces are told of there may be more, of which nothing is known but that they are
    no larger.
    """
    # Torch tells the size of the segment that it would have made for the request.
    pool = "small" if requested <= SMALL_SEGMENT_BYTES else "large"
    pieces: dict[int, list[int]] = {}
    for size, kind, stream in event.free_pieces:
        if kind == pool:
            pieces.setdefault(stream, []).append(size)
    if event.stream is not None:
        found = pieces.get(event.stream, [])
    else:
        found = max(pieces.values(), key=sum, default=[])
    return tuple(sorted(found, reverse=True))
