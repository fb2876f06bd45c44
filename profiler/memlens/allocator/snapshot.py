"""Torch's own memory snapshots: what they tell of an allocator, and the model in the same form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator import pieces
from memlens.allocator.pools import PENDING, USED, Block, Pool
from memlens.allocator.regions import Segment
from memlens.allocator.settings import AllocatorSettings
from memlens.events import Action

__all__ = ["end_state", "snapshot", "trace_columns"]

_STATE = {USED: "active_allocated", PENDING: "active_pending_free"}
"""Names of torch/csrc/cuda/Module.cpp; all else is inactive."""

_ACTION = {str(action.value): position for position, action in enumerate(Action)}
_ACTION["oom"] = _ACTION["out_of_memory"]


def end_state(segments: Iterable[Mapping[str, Any]]) -> tuple[list[Segment], list[pieces.Block]]:
    """Read `segments` of a snapshot; of one device."""
    found, blocks = [], []
    for segment in segments:
        stream = _signed(segment["stream"])
        found.append(
            Segment(
                address=segment["address"],
                size_bytes=segment["total_size"],
                stream=stream,
                is_small=segment["segment_type"] == "small",
                is_expandable=bool(segment.get("is_expandable", False)),
            )
        )
        place = segment["address"]
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                blocks.append(
                    pieces.Block(
                        address=place,
                        size_bytes=block["size"],
                        requested_bytes=block.get("requested_size", block["size"]),
                        stream=stream,
                        is_pending=block["state"] != "active_allocated",
                    )
                )
            place += block["size"]
    return found, blocks


def trace_columns(entries: Iterable[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """Read one of a snapshot's `device_traces`, as columns for `memlens.allocator.follow`.

    Entries that change nothing (`snapshot`, workspaces) are left out. Of a block, a trace does not tell
    what was set aside.
    """
    rows = [
        (
            _ACTION[entry["action"]],
            entry.get("addr", entry.get("device_free", 0)),
            entry["size"],
            entry["size"] if entry["action"].startswith("segment_") else 0,
            _signed(entry["stream"]),
        )
        for entry in entries
        if entry["action"] in _ACTION
    ]
    table = list(zip(*rows, strict=True)) if rows else [()] * 5
    return {
        "action": np.array(table[0], np.int8),
        "address": np.array(table[1], np.uint64),
        "requested_bytes": np.array(table[2], np.int64),
        "allocated_bytes": np.array(table[3], np.int64),
        "stream": np.array(table[4], np.int64),
    }


def snapshot(
    pools: Iterable[Pool],
    blocks: Mapping[int, Block],
    history: Iterable[tuple[str, int, int, int, int, Sequence[Mapping[str, object]], str]],
    settings: AllocatorSettings,
) -> dict[str, Any]:
    """Segments, history and settings, as `torch.cuda.memory._snapshot()` has them."""
    every = [*blocks.values(), *(block for pool in pools for block in pool.free.values())]
    # Of an expandable segment, each stretch that is mapped counts as one.
    heads = [block for block in every if block.previous is None or not block.previous.is_mapped]
    return {
        "segments": [_segment(head) for head in sorted(heads, key=lambda head: head.address)],
        "device_traces": [[_entry(*entry) for entry in history]],
        "allocator_settings": settings.to_snapshot(),
        "external_annotations": [],
    }


def _segment(head: Block) -> dict[str, Any]:
    blocks = []
    block: Block | None = head
    while block is not None and block.is_mapped:
        blocks.append(block)
        block = block.next
    active = [block for block in blocks if block.state in _STATE]
    return {
        "device": 0,
        "address": head.address,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": sum(block.size for block in active if block.state == USED),
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": head.stream,
        "segment_type": "small" if head.pool.is_small else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": head.range is not None,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": _STATE.get(block.state, "inactive"),
                "frames": list(block.frames) if block.state in _STATE else [],
            }
            for block in blocks
        ],
    }


def _entry(
    action: str,
    address: int,
    size: int,
    stream: int,
    time_us: int,
    frames: Sequence[Mapping[str, object]],
    metadata: str,
) -> dict[str, Any]:
    place = "device_free" if action == "oom" else "addr"
    entry = {"action": action, place: address, "size": size, "stream": stream}
    return entry | {"time_us": time_us, "frames": list(frames), "user_metadata": metadata}


def _signed(stream: int) -> int:
    """A stream is a pointer; the column holds 64 bits with a sign."""
    return stream if stream < 2**63 else stream - 2**64
