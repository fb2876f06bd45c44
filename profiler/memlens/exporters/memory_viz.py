"""A torch memory snapshot, for https://pytorch.org/memory_viz and `python -m torch.cuda._memory_viz`.

One pickle, in which each rank is a device: `device_traces[n]` has its allocations and frees with stacks,
our category (the viewer colours by it), and name, module, phase and step as `user_metadata`; `segments`
what it holds at the end. Sizes are what the allocator set aside, so that the viewer's totals are ours.
Equal stacks and texts are one object, which pickle writes once.

What the viewer asks for, beyond torch: a pickle of protocol 4 at most, and a category `unknown` wherever
there are any, without which it stops.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.segments import PHASES
from memlens.events import Category
from memlens.exporters.memory_viz_segments import (
    Change,
    Held,
    SegmentsSoFar,
    as_snapshot,
    stretches_around,
)
from memlens.exporters.rank_history import (
    Actions,
    actions_of,
    module_names,
    segment_events_of,
    streams_of,
    tensor_names,
)
from memlens.palette import CATEGORY_SERIES
from memlens.rank import CATEGORIES
from memlens.report.text import plain
from memlens.report.view import choose_ranks

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture

__all__ = ["export"]

Array = npt.NDArray[Any]
Entry = dict[str, Any]

MOST_BLOCKS = 600_000
"""Of all ranks together, the largest of each: the viewer takes a minute for so many."""
_PROTOCOL = 4
_NO_FRAMES: list[Entry] = []


def export(capture: Capture, out: Path) -> None:
    """Write a capture as one pickle."""
    ranks = choose_ranks(capture, None)
    traces: list[list[Entry]] = []
    segments: list[Entry] = []
    settings: Entry = {}
    for device, rank in enumerate(ranks):
        trace = _Trace(rank, MOST_BLOCKS // len(ranks))
        traces.append(trace.entries)
        segments += as_snapshot(trace.segments, trace.held, device)
        if rank.reserved_peak_bytes is not None:
            settings = rank.allocator_settings.to_snapshot()
        del trace
        rank.release()
    _declare_categories(traces)
    content = {
        "segments": segments,
        "device_traces": traces,
        "allocator_settings": settings,
        "external_annotations": [],
    }
    with out.open("wb") as file:
        pickle.dump(content, file, protocol=_PROTOCOL)


def _declare_categories(traces: list[list[Entry]]) -> None:
    """Name the categories before all else: the viewer gives colours in the order of their appearance."""
    used = {entry["category"] for trace in traces for entry in trace if "category" in entry}
    for trace in traces:
        if trace:
            names = [each.key for each in CATEGORY_SERIES if each.key in used - {"unknown"}]
            time_us = trace[0]["time_us"]
            trace[:0] = [
                {
                    "action": "snapshot",
                    "addr": 0,
                    "size": 0,
                    "stream": 0,
                    "time_us": time_us,
                    "frames": _NO_FRAMES,
                    "category": name,
                }
                for name in [*names, Category.UNKNOWN.value]
            ]
            return


class _Trace:
    """One rank: its entries, and what it holds at the end."""

    def __init__(self, rank: RankCapture, most: int) -> None:
        self.entries: list[Entry] = []
        self.held: dict[int, Held] = {}
        self._frames: dict[int, list[Entry]] = {-1: _NO_FRAMES}
        self._frame: dict[Any, Entry] = {}
        size = rank.blocks.size_bytes
        chosen = np.flatnonzero(size > 0)  # blocks without bytes share their addresses
        if len(chosen) > most:
            chosen = np.sort(np.argsort(-size, kind="stable")[:most])
        actions = actions_of(rank, chosen)
        events = segment_events_of(rank)
        is_expandable = bool(events) and rank.allocator_settings.expandable_segments
        so_far = SegmentsSoFar(events, is_expandable=is_expandable)
        if events and self._write(rank, chosen, actions, so_far):
            self.segments = list(so_far.regions)
        else:  # the allocator tells of none, or of too few
            self.entries.clear()
            self._write(rank, chosen, actions, None)
            self.segments = stretches_around(rank.blocks.address[chosen], size[chosen])

    def _write(
        self, rank: RankCapture, chosen: Array, actions: Actions, so_far: SegmentsSoFar | None
    ) -> bool:
        """Write the entries; False: a block lies in none of the segments so far."""
        blocks = rank.blocks
        address, size, requested, stack = (
            column[chosen].tolist()
            for column in (
                blocks.address,
                blocks.size_bytes,
                blocks.requested_bytes,
                blocks.stack,
            )
        )
        stream = streams_of(rank, chosen).tolist()
        category, metadata, meant = _meanings(rank, chosen)
        alive: dict[int, int] = {}
        add = self.entries.append
        for time_us, row, number, begins in zip(
            (actions.time_ns // 1000).tolist(),
            actions.row.tolist(),
            actions.block.tolist(),
            actions.is_begin.tolist(),
            strict=True,
        ):
            place = address[number]
            if so_far is not None:
                self.entries += map(_segment_entry, so_far.until(row))
            if begins:
                if so_far is not None and not so_far.holds(place, size[number]):
                    return False
                add(
                    {
                        "action": "alloc",
                        "addr": place,
                        "size": size[number],
                        "stream": stream[number],
                        "time_us": time_us,
                        "frames": self._frames_of(rank, stack[number]),
                        "category": category[meant[number]],
                        "user_metadata": metadata[meant[number]],
                    }
                )
                alive[place] = number
                continue
            alive.pop(place, None)
            for action in ("free_requested", "free_completed"):
                add(
                    {
                        "action": action,
                        "addr": place,
                        "size": size[number],
                        "stream": stream[number],
                        "time_us": time_us,
                        "frames": _NO_FRAMES,
                    }
                )
        if so_far is not None:
            self.entries += map(_segment_entry, so_far.until(None))
        self.held = {
            place: Held(
                place, size[number], requested[number], self._frames_of(rank, stack[number])
            )
            for place, number in alive.items()
        }
        return True

    def _frames_of(self, rank: RankCapture, stack: int) -> list[Entry]:
        """Innermost first, as torch has them; blocks from one place share one list."""
        if stack not in self._frames:
            self._frames[stack] = [
                self._frame.setdefault(
                    frame,
                    {
                        "name": plain(frame.function),
                        "filename": plain(frame.file),
                        "line": frame.line,
                    },
                )
                for frame in reversed(rank.texts.stack(stack))
            ]
        return self._frames[stack]


def _segment_entry(change: Change) -> Entry:
    return {
        "action": change.action,
        "addr": change.segment.address,
        "size": change.segment.size_bytes,
        "stream": change.segment.stream,
        "time_us": change.time_ns // 1000,
        "frames": _NO_FRAMES,
    }


def _meanings(rank: RankCapture, chosen: Array) -> tuple[list[str], list[Entry], list[int]]:
    """Category and metadata of blocks: what is different, and which of them is each block's."""
    found, segments = rank.attribution, rank.segments
    segment = found.segment[chosen]
    meant, first = np.zeros(len(chosen), np.int64), np.zeros(0, np.int64)
    columns = [
        found.category[chosen],
        segments.phase[segment],
        segments.step[segment],
        found.module[chosen],
        found.name[chosen],
    ]
    for column in columns:
        values, number = np.unique(column, return_inverse=True)
        # Numbered anew each time, so that no product is too large.
        _, first, meant = np.unique(
            meant * len(values) + number.ravel(), return_index=True, return_inverse=True
        )
        meant = meant.ravel()
    category, phase, step, module, name = (column[first].tolist() for column in columns)
    modules, names = module_names(rank, columns[3]), tensor_names(rank, columns[4])
    metadata = []
    for at in range(len(first)):
        entry = {"phase": PHASES[phase[at]].value, "step": step[at]}
        if modules[module[at]]:
            entry["module"] = plain(modules[module[at]])
        if names[name[at]]:
            entry["name"] = plain(names[name[at]])
        metadata.append(entry)
    return [CATEGORIES[code].value for code in category], metadata, meant.tolist()
