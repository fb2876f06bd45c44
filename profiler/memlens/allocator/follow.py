"""Follows a recorded history of the allocator: how large each block is, and what lies free.

A history tells what was asked for. What counts as allocated is the block that was set aside: the
request rounded up, and more where the rest of a piece is too small to be split off. Since the history
tells addresses, nothing has to be searched: the piece that begins there is the one that was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator.pieces import Block, FreePiece, PieceMap, State
from memlens.allocator.regions import Segment
from memlens.allocator.rewind import starting_state
from memlens.allocator.settings import (
    BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorSettings,
    rounding,
)
from memlens.events import Action

__all__ = [
    "Block",
    "Followed",
    "FreePiece",
    "Segment",
    "State",
    "as_census",
    "follow",
    "starting_state",
]

Array = npt.NDArray[Any]
Columns = dict[str, Array]

_CODE = {str(action.value): position for position, action in enumerate(Action)}
"""As `memlens.disk.format.codes`: the column `action` holds positions in the enumeration."""
_ALLOC, _FREE, _CENSUS, _CENSUS_FREE, _REQUESTED, _COMPLETED = (
    _CODE[name]
    for name in ("alloc", "free", "census", "census_free", "free_requested", "free_completed")
)
_SEGMENT_CENSUS, _MAP = _CODE["segment_census"], _CODE["segment_map"]
_GIVES_BACK = (_FREE, _COMPLETED, _CENSUS_FREE)
_GROWS = (_SEGMENT_CENSUS, _CODE["segment_alloc"], _MAP)
_SHRINKS = (_CODE["segment_free"], _CODE["segment_unmap"])
_NEVER = 2**62


@dataclass(frozen=True)
class Followed:
    """What a history comes to."""

    allocated_bytes: Array
    """Per row: size of the block that begins or ends (or waits), or of the segment's piece."""
    reserved_bytes: Array
    """Per row: what is taken from the device thereafter."""
    mismatches: int
    """How many rows do not fit the others, as they do after lost events."""
    columns: Columns
    settings: AllocatorSettings

    def state_after(self, row: int) -> State:
        """What the allocator held after a row; -1: before all.

        It is followed up to there once more: about a second per half a million rows.
        """
        pieces = PieceMap()
        head = {name: column[: row + 1] for name, column in self.columns.items()}
        _follow(head, self.settings, pieces)
        return pieces.state()


def follow(columns: Columns, settings: AllocatorSettings) -> Followed:
    """Work out the size of each block.

    Args:
        columns: events of one device as on disk, in the order in which they happened: `action`,
            `address`, `requested_bytes`, `allocated_bytes` (0 where it is not told), `stream`.
        settings: of the allocator.
    """
    allocated, reserved, mismatches = _follow(columns, settings, PieceMap())
    return Followed(allocated, reserved, mismatches, columns, settings)


def as_census(segments: Sequence[Segment], blocks: Sequence[Block], time_ns: int = 0) -> Columns:
    """What is there at the beginning, as rows that can stand before a history."""
    pending = [block for block in blocks if block.is_pending]
    rows = [
        (_SEGMENT_CENSUS, each.address, each.size_bytes, each.size_bytes, each.stream)
        for each in segments
    ]
    for action, chosen in ((_CENSUS, blocks), (_REQUESTED, pending)):
        rows += [
            (action, each.address, each.requested_bytes, each.size_bytes, each.stream)
            for each in chosen
        ]
    table = list(zip(*rows, strict=True)) if rows else [()] * 5
    return {
        "time_ns": np.full(len(rows), time_ns, np.int64),
        "action": np.array(table[0], np.int8),
        "device": np.zeros(len(rows), np.int8),
        "address": np.array(table[1], np.uint64),
        "requested_bytes": np.array(table[2], np.int64),
        "allocated_bytes": np.array(table[3], np.int64),
        "stream": np.array(table[4], np.int64),
        "stack": np.full(len(rows), -1, np.int32),
    }


def _follow(
    columns: Columns, settings: AllocatorSettings, pieces: PieceMap
) -> tuple[Array, Array, int]:
    action = columns["action"]
    told = columns["allocated_bytes"].astype(np.int64)
    rounded = rounding(settings, columns["requested_bytes"])
    least_rest = np.where(told > 0, 1, _least_rests(settings, rounded))  # told: all else is rest
    size = np.where(told > 0, told, rounded)
    grows, shrinks = np.isin(action, _GROWS), np.isin(action, _SHRINKS)
    size = np.where(grows | shrinks, np.maximum(told, columns["requested_bytes"]), size)
    change = np.where(grows, size, np.where(shrinks, -size, 0))
    reserved = np.cumsum(change)

    is_census = np.isin(action, (_CENSUS, _SEGMENT_CENSUS))
    kind = np.where(is_census, 1, np.where(shrinks, 2, 0))
    edges = [0, *(np.flatnonzero(kind[1:] != kind[:-1]) + 1).tolist(), len(kind)]
    allocated = size.copy()
    mismatches = 0
    for start, stop in pairwise(edges if len(kind) else []):
        rows = slice(start, stop)
        table = [action, columns["address"], size, least_rest, columns["stream"]]
        lists = [column[rows].tolist() for column in table]
        if kind[start] == 0:
            allocated[rows], missed = _follow_blocks(pieces, *lists)
        elif kind[start] == 1:
            missed = _take_stock(pieces, *lists, is_expandable=settings.expandable_segments)
            if action[start] == _SEGMENT_CENSUS:
                # It tells of everything, at one moment.
                held = int(size[rows][action[rows] == _SEGMENT_CENSUS].sum())
                reserved[stop:] += held - reserved[stop - 1]
                reserved[rows] = held
        else:
            missed = _shrink(pieces, *lists)
        mismatches += missed
    return allocated, reserved, mismatches


def _least_rests(settings: AllocatorSettings, block_bytes: Array) -> Array:
    """`AllocatorSettings.least_rest_bytes` of many; more than there is stands for None."""
    if settings.expandable_segments:
        return np.full(len(block_bytes), BLOCK_BYTES)
    least = np.where(block_bytes <= SMALL_BYTES, BLOCK_BYTES, SMALL_BYTES + 1)
    if settings.max_split_size_bytes is not None:
        least[block_bytes >= settings.max_split_size_bytes] = _NEVER
    return least


def _follow_blocks(
    pieces: PieceMap,
    actions: list[int],
    addresses: list[int],
    sizes: list[int],
    least_rests: list[int],
    streams: list[int],
) -> tuple[list[int], int]:
    """All rows but those that tell of what is there, or that give back: the bulk, hence all inline."""
    free, ends, blocks, bounds = pieces.free, pieces.ends, pieces.blocks, pieces.bounds
    mismatches = 0
    result: list[int] = []
    append = result.append
    for action, address, size, least_rest in zip(
        actions, addresses, sizes, least_rests, strict=True
    ):
        if action == _ALLOC:
            rest = free.pop(address, 0) - size
            if rest >= least_rest:
                after = address + size
                free[after] = rest
                ends[after + rest] = after
                blocks[address] = size
            elif rest >= 0:
                size += rest
                del ends[address + size]
                blocks[address] = size
            else:
                if rest + size:
                    free[address] = rest + size
                mismatches += 1
                size = _misfit(pieces, address, size, least_rest)
        elif action in _GIVES_BACK:
            known = blocks.pop(address, 0)
            if known > 0:
                if action == _COMPLETED:
                    pieces.pending.discard(address)
                size = known
                end = address + size
                if end in free and end not in bounds:
                    end += free.pop(end)
                if address in ends and address not in bounds:
                    address = ends.pop(address)
                free[address] = end - address
                ends[end] = address
            elif known:
                size = -known
            else:
                mismatches += 1
        elif action == _REQUESTED:
            known = blocks.get(address, 0)
            if known:
                size = abs(known)
                pieces.pending.add(address)
            else:
                mismatches += 1
        elif action in _GROWS:
            is_new = not pieces.regions.overlapping(address, address + size)
            mismatches += not is_new
            is_expandable = action == _MAP
            is_small = size == SMALL_SEGMENT_BYTES  # nothing else of the large pool is so small
            stream = streams[len(result)]
            pieces.add(Segment(address, size, stream, is_small, is_expandable))
        append(size)
    return result, mismatches


def _misfit(pieces: PieceMap, address: int, size: int, least_rest: int) -> int:
    """Hand out what cannot be free, by all that is known: the address tells that it is."""
    pieces.clear(address, address + size)
    got = pieces.cut(address, size, least_rest)
    if got is None:
        pieces.blocks[address] = -size
    return got or size


def _take_stock(
    pieces: PieceMap,
    actions: list[int],
    addresses: list[int],
    sizes: list[int],
    least_rests: list[int],
    streams: list[int],
    *,
    is_expandable: bool,
) -> int:
    """What is there now; after a loss, it replaces what was known."""
    rows = sorted(zip(addresses, actions, sizes, least_rests, streams, strict=True))
    mismatches = 0
    if _SEGMENT_CENSUS in actions:
        pieces.reset()
    for address, action, size, _, stream in rows:
        if action == _SEGMENT_CENSUS:
            mismatches += bool(pieces.regions.overlapping(address, address + size))
            is_small = size == SMALL_SEGMENT_BYTES
            pieces.add(Segment(address, size, stream, is_small, is_expandable))
    pieces.index()
    for address, action, size, least_rest, _ in rows:
        if action == _CENSUS:
            if not pieces.is_free(address, size):
                pieces.clear(address, address + size)
            if pieces.cut(address, size, least_rest) is None:
                pieces.blocks[address] = -size
                mismatches += len(pieces.regions) > 0
    return mismatches


def _shrink(
    pieces: PieceMap,
    _actions: list[int],
    addresses: list[int],
    sizes: list[int],
    _least_rests: list[int],
    _streams: list[int],
) -> int:
    mismatches = 0
    pieces.index()
    for address, size in zip(addresses, sizes, strict=True):
        mismatches += not pieces.is_free(address, size)
        pieces.remove(address, size)
    return mismatches
