"""Turns what a source tells into columns of the stream of events."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.disk.format import codes
from memlens.events import Action
from memlens.sources.base import Block, EventBatch

__all__ = ["census_columns", "census_free_columns", "device_column", "event_columns"]

Array = npt.NDArray[Any]
_ACTION = codes(Action)


def event_columns(batch: EventBatch) -> list[Any]:
    """Columns of a batch, in the order of the schema."""
    count = len(batch.time_ns)
    size = np.array(batch.size_bytes, np.int64)
    action = batch.action
    if action is None:
        action = np.where(size < 0, _ACTION["free"], _ACTION["alloc"]).astype(np.int8)
        size = np.abs(size)
    return [
        batch.time_ns,
        action,
        device_column(batch),
        np.array(batch.address, np.uint64),
        size,
        size if batch.allocated_bytes is None else batch.allocated_bytes,
        np.zeros(count, np.int64) if batch.stream is None else batch.stream,
        np.full(count, -1, np.int32) if batch.stack is None else batch.stack,
    ]


def device_column(batch: EventBatch) -> Array:
    """Position of each event's device in the source's list."""
    return np.zeros(len(batch.time_ns), np.int8) if batch.device is None else batch.device


def census_columns(blocks: list[Block], time_ns: int) -> list[Any]:
    """Columns of what was there when recording began; segments before the blocks inside."""
    pending = [block for block in blocks if block.is_pending]
    rows = [("segment_census", block) for block in blocks if block.is_segment]
    rows += [("census", block) for block in blocks if not block.is_segment]
    rows += [("free_requested", block) for block in pending]
    return [
        [time_ns] * len(rows),
        [_ACTION[action] for action, _ in rows],
        [block.device for _, block in rows],
        np.array([block.address for _, block in rows], np.uint64),
        [
            block.size_bytes if block.requested_bytes is None else block.requested_bytes
            for _, block in rows
        ],
        [block.size_bytes for _, block in rows],
        [block.stream for _, block in rows],
        [-1] * len(rows),
    ]


def census_free_columns(frees: list[tuple[int, int, int]]) -> list[Any]:
    """Columns of frees (time, address, bytes) that the allocator does not tell."""
    times, addresses, sizes = zip(*frees, strict=True)
    count = len(times)
    return [
        times,
        [_ACTION["census_free"]] * count,
        [0] * count,
        np.array(addresses, np.uint64),
        sizes,
        sizes,
        [0] * count,
        [-1] * count,
    ]
