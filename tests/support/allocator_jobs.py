"""Random jobs on the model of the allocator, for tests of what follows or replays histories."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from memlens.allocator.caching import CachingAllocator, OutOfDeviceMemory
from memlens.allocator.settings import AllocatorSettings

MIB = 2**20


def run_random_job(
    seed: int,
    settings: str = "",
    *,
    requests: int = 600,
    capacity_bytes: int | None = None,
    snapshot_at: int | None = None,
    is_simple: bool = False,
) -> tuple[CachingAllocator, dict[str, Any]]:
    """A job that allocates, frees, uses other streams and empties the cache.

    Args:
        is_simple: it uses no other streams, and leaves the cache alone.

    Returns:
        The allocator at the end, and its snapshot from when `snapshot_at` requests had been made.
    """
    draw = random.Random(seed)
    allocator = CachingAllocator(AllocatorSettings.from_text(settings), capacity_bytes)
    sizes = [
        lambda: draw.randrange(1, 4000),
        lambda: draw.randrange(1, MIB),
        lambda: draw.randrange(MIB, 12 * MIB),
        lambda: draw.randrange(12 * MIB, 60 * MIB),
        lambda: draw.choice((MIB - 512, MIB, MIB + 1, 2 * MIB, 10 * MIB, 20 * MIB, 21 * MIB - 700)),
    ]
    live: list[int] = []
    waiting: list[int] = []
    early = allocator.snapshot()
    for number in range(requests):
        if number == snapshot_at:
            early = allocator.snapshot()
        # Waves, so that much is freed at times.
        grows = draw.random() < (0.7 if number % 200 < 120 else 0.25)
        if grows or not live:
            with suppress(OutOfDeviceMemory):
                live.append(allocator.malloc(draw.choice(sizes)(), draw.choice((0, 0, 0, 7))))
        else:
            address = live.pop(draw.randrange(len(live)))
            if draw.random() < 0.1 and not is_simple:
                allocator.record_stream(address, 9)
                waiting.append(address)
            allocator.free(address)
        if waiting and draw.random() < 0.3:
            address = waiting.pop(0)
            if address in allocator.pending:  # running out of memory completes it, too
                allocator.complete(address)
        if draw.random() < 0.01 and not is_simple:
            allocator.empty_cache()
    return allocator, early
