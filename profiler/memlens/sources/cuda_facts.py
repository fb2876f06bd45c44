"""How an allocator stands, from its list of segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["facts_of", "is_private"]

MOST_PIECES = 1000


def is_private(segment: dict[str, Any]) -> bool:
    """Whether it belongs to a pool of its own (CUDA graphs), from which nothing else is served."""
    return tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)


def facts_of(segments: Sequence[dict[str, Any]], device: int) -> dict[str, Any]:
    """What one needs to know about a request that failed; see `memlens.disk.oom` for the fields."""
    mine = [segment for segment in segments if segment["device"] == device]
    pieces = sorted(
        (
            [block["size"], segment["segment_type"], segment["stream"]]
            for segment in mine
            if not is_private(segment)
            for block in segment["blocks"]
            if block["state"] == "inactive"
        ),
        reverse=True,
    )
    allocated, active, reserved = (
        sum(segment[key] for segment in mine)
        for key in ("allocated_size", "active_size", "total_size")
    )
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": reserved,
        "private_pool_bytes": sum(each["total_size"] for each in mine if is_private(each)),
        "pending_bytes": active - allocated,
        "free_pieces": pieces[:MOST_PIECES],
        "free_pieces_bytes": sum(piece[0] for piece in pieces),
        "largest_free_bytes": pieces[0][0] if pieces else 0,
    }
