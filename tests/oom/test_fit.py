"""Why a request failed: every figure by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from memlens.analysis.fit import Obstacle, fit_of
from memlens.answers import OutOfMemory

MIB, GIB = 2**20, 2**30
EVENT = OutOfMemory(
    time_ns=1,
    reason="own",
    peer_rank=None,
    device="cuda:0",
    device_index=0,
    step=3,
    requested_bytes=2 * GIB,
    stream=0,
    device_total_bytes=80 * GIB,
    device_free_bytes=GIB,
    limit_bytes=None,
    allocated_bytes=70 * GIB,
    reserved_bytes=75 * GIB,
    private_pool_bytes=0,
    pending_bytes=0,
    free_pieces=((GIB // 2, "large", 0),) * 2,
    free_pieces_bytes=GIB,
    largest_free_bytes=GIB // 2,
    allocator_settings={},
    stack=(),
)
ELSEWHERE = ((GIB, "large", 7), (GIB // 4, "large", 0))
"""Of what lies free in the cache, most belongs to another stream."""


@pytest.mark.parametrize(
    ("changes", "obstacle", "missing", "short"),
    [
        ({}, Obstacle.FRAGMENTATION, GIB, 0),
        ({"free_pieces": EVENT.free_pieces[:1]}, Obstacle.SIZE, GIB, GIB // 2),
        ({"free_pieces": (), "pending_bytes": GIB}, Obstacle.STREAMS, GIB, GIB),
        ({"free_pieces": (), "pending_bytes": GIB - 1}, Obstacle.SIZE, GIB, GIB),
        # What other streams keep, and what is kept for small requests, is of no use.
        ({"free_pieces": ELSEWHERE}, Obstacle.POOLS, GIB, GIB * 3 // 4),
        ({"free_pieces": ELSEWHERE, "stream": 7}, Obstacle.FRAGMENTATION, GIB, 0),
        ({"free_pieces": ELSEWHERE, "stream": None}, Obstacle.FRAGMENTATION, GIB, 0),
        (
            {"free_pieces": ELSEWHERE, "requested_bytes": 3 * GIB},
            Obstacle.SIZE,
            2 * GIB,
            7 * GIB // 4,
        ),
        ({"free_pieces": ((GIB, "small", 0),)}, Obstacle.POOLS, GIB, GIB),
        (
            {"free_pieces": ((GIB, "large", 7),), "pending_bytes": GIB},
            Obstacle.STREAMS,
            GIB,
            GIB,
        ),
        (
            {"device_free_bytes": 10 * GIB, "limit_bytes": 76 * GIB, "free_pieces": ()},
            Obstacle.LIMIT,
            GIB,
            GIB,
        ),
    ],
)
def test_the_obstacle(
    changes: dict[str, Any], obstacle: Obstacle, missing: int, short: int
) -> None:
    fit = fit_of(replace(EVENT, **changes))
    assert fit is not None
    assert (fit.obstacle, fit.missing_bytes, fit.short_bytes) == (obstacle, missing, short)


@pytest.mark.parametrize(
    ("requested", "usable"),
    # A request of 1 MiB at most, for which torch would have made a segment of 2 MiB.
    [(2 * MIB, (MIB // 2, MIB // 4)), (20 * MIB, (8 * MIB,))],
)
def test_pieces_of_its_pool_and_stream(requested: int, usable: tuple[int, ...]) -> None:
    pieces = (
        (30 * MIB, "large", 7),
        (8 * MIB, "large", 0),
        (MIB // 2, "small", 0),
        (MIB // 4, "small", 0),
        (MIB // 8, "small", 7),
    )
    event = replace(EVENT, requested_bytes=requested, device_free_bytes=MIB, free_pieces=pieces)
    fit = fit_of(event)
    assert fit is not None
    assert fit.usable == usable
    assert fit.elsewhere_bytes == sum(piece[0] for piece in pieces) - sum(usable)


def test_what_others_hold() -> None:
    fit = fit_of(EVENT)
    assert fit is not None
    assert fit.outside_bytes == 4 * GIB  # of 80, 1 is free and 75 are reserved


def test_another_ranks_request_is_not_explained() -> None:
    assert fit_of(replace(EVENT, requested_bytes=None)) is None
