"""What a window keeps of the time before it: the blocks that are still there, and what is known of them.

Each block keeps the segment in which it was allocated and every tag that says something new of it, so
that rules come to the same answer as with the whole history at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.allocator.follow import as_census
from memlens.allocator.pieces import Block
from memlens.allocator.regions import Segment
from memlens.attribution.device import DeviceHistory
from memlens.attribution.lifetimes import FOREVER, Lifetimes
from memlens.attribution.segments import Segments
from memlens.disk.format import codes
from memlens.events import Category
from memlens.recording.tail import segments_at

__all__ = ["Carried", "census_of", "chosen_segments", "joined_segments", "tags_worth_keeping"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
_UNKNOWN = codes(Category)["unknown"]

_ARRAYS = tuple(
    field.name for field in fields(Segments) if field.name not in ("step_start_ns", "trained")
)


@dataclass(frozen=True)
class Carried:
    """Blocks alive when a window begins, in parallel arrays, ordered by address."""

    address: Array
    size_bytes: Array
    requested_bytes: Array
    alloc_ns: Array
    preexisting: Array
    category: Array
    """What was concluded last."""
    tags: Columns
    """All that differ, in the order of time; each belongs to one of the blocks."""
    segments: Segments
    """Those in which the blocks were allocated."""
    census: Columns
    """Events that tell what the allocator held."""

    def rows_of(self, blocks: Lifetimes, census_events: int) -> tuple[Array, Array]:
        """Where the blocks are among a window's: positions there, and positions here."""
        theirs = np.flatnonzero(blocks.first < census_events)
        if not len(self.address) or not len(theirs):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        mine = np.searchsorted(self.address, blocks.address[theirs])
        mine = np.minimum(mine, len(self.address) - 1)
        known = self.address[mine] == blocks.address[theirs]
        return theirs[known], mine[known]

    def restored(self, blocks: Lifetimes, rows: Array, mine: Array) -> Lifetimes:
        """A window's blocks, with when those from before it were allocated."""
        alloc_ns, preexisting = blocks.alloc_ns.copy(), blocks.preexisting.copy()
        alloc_ns[rows], preexisting[rows] = self.alloc_ns[mine], self.preexisting[mine]
        return replace(blocks, alloc_ns=alloc_ns, preexisting=preexisting)

    def keep_inherited(self, category: Array, blocks: Lifetimes, rows: Array, mine: Array) -> Array:
        """Categories, where those that were taken over a gap in the recording stay."""
        lost = (category[rows] == _UNKNOWN) & blocks.preexisting[rows]
        category = category.copy()
        category[rows[lost]] = self.category[mine[lost]]
        return category


def census_of(history: DeviceHistory, alive: Array, cut_ns: int) -> Columns:
    """Segments and blocks at a moment, as events that can stand before later ones.

    Args:
        history: what was recorded until then, and maybe longer.
        alive: positions of the blocks that are in use at that moment.
        cut_ns: the moment.
    """
    blocks = history.blocks
    held = [
        Block(address, size, requested)
        for address, size, requested in zip(
            blocks.address[alive].tolist(),
            blocks.size_bytes[alive].tolist(),
            blocks.requested_bytes[alive].tolist(),
            strict=True,
        )
    ]
    if history.followed is None:
        pieces = segments_at(history.events, cut_ns)
        segments = [Segment(start, end - start) for start, end in pieces]
    else:  # it matters what lies free, and what other streams still use
        row = int(np.searchsorted(history.told["time_ns"], cut_ns, side="left")) - 1
        state = history.followed.state_after(row)
        segments = list(state.segments)
        held += [
            Block(address, state.blocks[address], state.blocks[address], is_pending=True)
            for address in sorted(state.pending & state.blocks.keys())
        ]
    return as_census(segments, held)


def joined_segments(before: Segments | None, now: Segments, begin_ns: int) -> Segments:
    """The kept segments, and those of a window from its beginning on."""
    if before is None:
        return now
    inside = now.start_ns >= begin_ns
    arrays = {
        name: np.concatenate([getattr(before, name), getattr(now, name)[inside]])
        for name in _ARRAYS
    }
    # What came last before the window may have had no forward after it yet.
    outer = now.next_forward_ns[np.searchsorted(now.start_ns, begin_ns, side="left") - 1]
    waits = arrays["next_forward_ns"] == FOREVER
    waits[len(before.start_ns) :] = False
    arrays["next_forward_ns"][waits] = outer
    return Segments(**arrays, step_start_ns=now.step_start_ns, trained=now.trained)


def chosen_segments(segments: Segments, chosen: Array) -> Segments:
    """Some of them, by position."""
    arrays = {name: getattr(segments, name)[chosen] for name in _ARRAYS}
    return Segments(**arrays, step_start_ns={}, trained=set())


def tags_worth_keeping(tags: Columns, address: Array, alloc_ns: Array) -> Array:
    """Positions of the tags of some blocks that are alive, each that says the same only once.

    Args:
        tags: in the order of time.
        address: of the blocks, in ascending order.
        alloc_ns: when each was allocated; earlier tags speak of what was there before it.
    """
    if not len(address) or not len(tags["time_ns"]):
        return np.empty(0, np.int64)
    slot = np.minimum(np.searchsorted(address, tags["address"]), len(address) - 1)
    mine = np.flatnonzero((address[slot] == tags["address"]) & (tags["time_ns"] >= alloc_ns[slot]))
    names = ("address", "size_bytes", "category", "certainty", "name", "module", "offset_bytes")
    keys = [tags[name][mine] for name in reversed(names)]
    order = np.lexsort([mine, *keys])
    differs = np.ones(len(order), bool)
    differs[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    return np.sort(mine[order[differs]])
