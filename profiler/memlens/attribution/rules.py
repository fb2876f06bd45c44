"""Gives each block its category: first what an object declared, then what its lifetime tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import FOREVER, Lifetimes
from memlens.attribution.parts import Parts, find_parts
from memlens.attribution.segments import Scope, Segments
from memlens.attribution.workspaces import Workspaces, find_workspaces
from memlens.disk.format import codes
from memlens.events import Category, Certainty

__all__ = ["Attribution", "attribute"]

Array = npt.NDArray[Any]

_CATEGORY = codes(Category)
_CERTAINTY = codes(Certainty)
_NO_WORKSPACES = Workspaces()

_PRIORITY = (
    Category.WEIGHT,
    Category.MASTER_WEIGHT,
    Category.OPTIMIZER_STATE,
    Category.GRADIENT,
    Category.COMMUNICATION,
    Category.INPUT,
)
"""Where several tags claim one block, the first of these holds: a weight stays a weight although it
is also handed to a module, and state stays state although it began as a gradient."""


@dataclass(frozen=True)
class Attribution:
    """One entry per lifetime."""

    category: Array
    """Position in Category."""
    certainty: Array
    """Position in Certainty."""
    name: Array
    """Number of the tensor's name, or -1."""
    module: Array
    """Number of the module that owns it or was at work when it was allocated, or -1."""
    segment: Array
    """Segment in which it was allocated."""
    uncovered_bytes: int
    """Bytes of tensors that observers saw in memory that no event tells of."""
    parts: Parts
    """Of blocks that several tensors share."""


def attribute(
    blocks: Lifetimes,
    segments: Segments,
    tags: dict[str, Array],
    workspaces: Workspaces = _NO_WORKSPACES,
) -> Attribution:
    """Join lifetimes, segments and tags.

    Args:
        blocks: one row per block.
        segments: what the job did when.
        tags: what observers said, columns as on disk.
        workspaces: sizes that libraries ask for when they make one for themselves.
    """
    where = segments.at(blocks.alloc_ns).astype(np.int32)
    category = _infer(blocks, segments, where)
    category[find_workspaces(blocks, segments, where, workspaces)] = _CATEGORY["workspace"]
    certainty = np.full(len(category), _CERTAINTY["inferred"], np.int8)
    # What a library keeps, and no object shows, is called after what made it.
    name = np.where(category == _CATEGORY["temporary"], -1, segments.label[where])
    module = segments.module[where]
    # The census does not know who allocated what it found.
    name[blocks.preexisting] = module[blocks.preexisting] = -1

    hit = _locate(blocks, tags)
    uncovered = _uncovered(tags, hit < 0)
    tag = np.flatnonzero(hit >= 0)
    block = hit[tag]
    # One model's output may be the next one's argument: it stays what the forward made of it.
    made_by_model = (
        np.isin(
            segments.scope[where[block]],
            [Scope.MODULE, Scope.RECOMPUTE, Scope.BACKWARD, Scope.OPTIMIZER],
        )
        & ~blocks.preexisting[block]
    )
    keep = ~((tags["category"][tag] == _CATEGORY["input"]) & made_by_model)
    keep &= ~_in_bucket(blocks, tags, tag, block)
    tag, block = tag[keep], block[keep]

    rank = np.full(len(_CATEGORY), len(_PRIORITY), np.int64)
    for position, member in enumerate(_PRIORITY):
        rank[_CATEGORY[member.value]] = position
    every_tag, every_block = tag, block
    # A flat tensor names its block rather than the parameters that are views of it.
    by_size = -np.minimum(tags["size_bytes"][tag], blocks.requested_bytes[block])
    by_size[tags["offset_bytes"][tag] < 0] = 0
    order = np.lexsort((tags["time_ns"][tag], by_size, rank[tags["category"][tag]], block))
    tag, block = tag[order], block[order]
    best = np.append(True, block[1:] != block[:-1]) if len(block) else np.empty(0, bool)
    tag, block = tag[best], block[best]
    category[block] = tags["category"][tag]
    certainty[block] = tags["certainty"][tag]
    name[block] = tags["name"][tag]
    owned = tags["module"][tag] >= 0
    # A buffer that no module owns is not that of the module at whose call a library happens to make it.
    owned |= tags["category"][tag] == _CATEGORY["communication"]
    module[block[owned]] = tags["module"][tag[owned]]
    _inherit(blocks, category, certainty, name, module)
    parts = find_parts(blocks, category, tags, every_tag, every_block)
    return Attribution(category, certainty, name, module, where, uncovered, parts)


def _in_bucket(blocks: Lifetimes, tags: dict[str, Array], tag: Array, block: Array) -> Array:
    """Tags of gradients that lie in a bucket on their way to other ranks, and not for long.

    Of one that fills its bucket, time tells: the bucket was there first.
    """
    room = blocks.requested_bytes[block]
    kind, size, time = tags["category"][tag], tags["size_bytes"][tag], tags["time_ns"][tag]
    whole = (kind == _CATEGORY["communication"]) & (size >= room)
    since = np.full(len(blocks.first), FOREVER, np.int64)
    np.minimum.at(since, block[whole], time[whole])
    is_bucket = since[block] < np.where(size < room, FOREVER, time)
    found: Array = (kind == _CATEGORY["gradient"]) & is_bucket
    return found


def _infer(blocks: Lifetimes, segments: Segments, where: Array) -> Array:
    """Conclude a category from the scope of the allocation and the time of the free.

    * A forward: freed before the module that made it returns, it was temporary; else it is an
      activation, kept for another module or for backward. The same for a recomputed forward.
    * Between a model's forward and backward (the loss): alive when backward begins, an activation.
    * Backward: freed before the engine returns, temporary; else a gradient. Gradients that a job
      takes from `autograd.grad` are never seen in a `.grad`, and found here.
    * `optimizer.step()`: freed before it returns, temporary; else state. State that hides from the
      observers (in an object of a class they do not know) is found here.
    * Outside of all: alive when a forward begins, it was prepared for it, an input; else temporary.
      Wrong for tensors that a script keeps for itself; they are few, and marked as inferred.

    What the census found and no tag explains stays unknown.
    """
    scope = segments.scope[where]
    dies_inside = blocks.free_ns <= segments.scope_end_ns[where]
    category = np.full(len(where), _CATEGORY["unknown"], np.int8)
    for kinds, temporary, kept in (
        ((Scope.MODULE, Scope.RECOMPUTE, Scope.LOSS), "temporary", "activation"),
        ((Scope.BACKWARD,), "temporary", "gradient"),
        ((Scope.OPTIMIZER,), "optimizer_temporary", "optimizer_state"),
    ):
        mine = np.isin(scope, kinds)
        category[mine] = np.where(dies_inside[mine], _CATEGORY[temporary], _CATEGORY[kept])
    library = scope == Scope.LIBRARY
    category[library] = np.where(
        dies_inside[library],
        segments.temporary[where][library],
        segments.survivor[where][library],
    )
    outside = scope == Scope.NONE
    next_forward = segments.next_forward_ns[where]
    category[outside & (blocks.free_ns > next_forward)] = _CATEGORY["input"]
    category[outside & (blocks.free_ns <= next_forward) & (blocks.free_ns < FOREVER)] = _CATEGORY[
        "temporary"
    ]
    category[blocks.preexisting] = _CATEGORY["unknown"]
    return category


def _inherit(
    blocks: Lifetimes, category: Array, certainty: Array, name: Array, module: Array
) -> None:
    """What a census finds after a gap in the recording is what was there before the gap."""
    cut = (blocks.free_ns < FOREVER) & (blocks.last < len(blocks.time_ns))
    cut[cut] &= blocks.free_ns[cut] < blocks.time_ns[blocks.last[cut]]
    if not np.any(cut):
        return
    found = blocks.preexisting & (category == _CATEGORY["unknown"])
    held: dict[tuple[int, int], int] = {}

    def is_next(before: int, after: int) -> bool:
        return bool(blocks.interval[before] + 1 == blocks.interval[after])

    for number in np.flatnonzero(cut | found).tolist():  # in the order of their beginnings
        key = int(blocks.address[number]), int(blocks.size_bytes[number])
        before = held.get(key)
        if found[number] and before is not None and is_next(before, number):
            for column in (category, name, module):
                column[number] = column[before]
            certainty[number] = _CERTAINTY["inferred"]
        if cut[number]:
            held[key] = number


def _locate(blocks: Lifetimes, tags: dict[str, Array]) -> Array:
    """Lifetime that each tag speaks of, or -1: at its address, and alive at its time."""
    count = len(tags["time_ns"])
    hit = np.full(count, -1, np.int64)
    if not count or not len(blocks.first):
        return hit
    known = np.unique(blocks.address)
    slot = np.minimum(np.searchsorted(known, tags["address"]), len(known) - 1)
    at_known = known[slot] == tags["address"]
    # Events before the tag, so that (address, event) orders lifetimes and tags alike.
    before = np.searchsorted(blocks.time_ns, tags["time_ns"], side="right")
    scale = len(blocks.time_ns) + 1
    key = np.searchsorted(known, blocks.address) * scale + blocks.first
    order = np.argsort(key, kind="stable")
    found = np.searchsorted(key[order], slot * scale + before, side="left") - 1
    candidate = order[np.maximum(found, 0)]
    alive = (
        at_known
        & (found >= 0)
        & (blocks.address[candidate] == tags["address"])
        & (blocks.last[candidate] >= before)
    )
    hit[alive] = candidate[alive]
    return hit


def _uncovered(tags: dict[str, Array], missed: Array) -> int:
    """Bytes of distinct addresses that tags name and no event does."""
    if not np.any(missed):
        return 0
    order = np.argsort(tags["address"][missed], kind="stable")
    address, size = tags["address"][missed][order], tags["size_bytes"][missed][order]
    starts = np.flatnonzero(np.append(True, address[1:] != address[:-1]))
    return int(np.maximum.reduceat(size, starts).sum())
