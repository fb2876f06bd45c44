"""The blocks of the allocator's model: in a chain per segment, and the free ones sorted by size."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence

from memlens.allocator import pieces
from memlens.allocator.settings import AllocatorSettings

__all__ = ["FREE", "PENDING", "USED", "AddressRange", "Block", "Pool", "lay_blocks", "merge"]

FREE, USED, PENDING = range(3)
"""Pending: given back, but other streams still use it."""
_SHIFT = 64
_ADDRESS = (1 << _SHIFT) - 1


class AddressRange:
    """Addresses that an expandable segment can grow into, page by page."""

    __slots__ = ("address", "page", "size")

    def __init__(self, address: int, size: int, page: int) -> None:
        self.address = address
        self.size = size
        self.page = page


class Block:
    """A piece of a segment, or of the part of an expandable one that is not mapped."""

    __slots__ = (
        "address",
        "born",
        "frames",
        "is_mapped",
        "next",
        "pool",
        "previous",
        "range",
        "requested",
        "size",
        "state",
        "stream",
        "users",
    )

    def __init__(self, address: int, size: int, stream: int, pool: Pool) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.pool = pool
        self.requested = 0
        self.state = FREE
        self.is_mapped = True
        self.previous: Block | None = None
        self.next: Block | None = None
        self.range: AddressRange | None = None
        self.users: set[int] | None = None
        """Other streams that were told to use it."""
        self.born = 0
        """How many requests its pool had had when it last became free."""
        self.frames: Sequence[Mapping[str, object]] = ()

    @property
    def is_whole(self) -> bool:
        """It is all of its segment."""
        return self.previous is None and self.next is None

    def split(self, size: int) -> Block:
        """Shorten it; the rest becomes a block of its own, behind it."""
        rest = Block(self.address + size, self.size - size, self.stream, self.pool)
        rest.range, rest.is_mapped = self.range, self.is_mapped
        rest.previous, rest.next = self, self.next
        if rest.next is not None:
            rest.next.previous = rest
        self.next, self.size = rest, size
        return rest


class Pool:
    """The free blocks for small requests, or for large ones; each stream has its own."""

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.requests = 0
        """How often a block was looked for; counted only where blocks are freed by age."""
        self.free: dict[int, Block] = {}
        """By address."""
        self.sorted: dict[int, list[int]] = {}
        """Per stream: sizes and addresses, as one number each, since that compares quickest."""
        self.unmapped: dict[int, Block] = {}
        """Parts of expandable segments that no memory stands behind, by address."""

    def insert(self, block: Block) -> None:
        """A block is free."""
        self.free[block.address] = block
        block.born = self.requests
        key = block.size << _SHIFT | block.address
        keys = self.sorted.get(block.stream)
        if keys is None:
            self.sorted[block.stream] = [key]
        else:
            insort(keys, key)

    def remove(self, block: Block) -> None:
        """It is no longer."""
        del self.free[block.address]
        keys = self.sorted[block.stream]
        del keys[bisect_left(keys, block.size << _SHIFT | block.address)]

    def take(self, size: int, stream: int, settings: AllocatorSettings) -> Block | None:
        """The smallest free block that a request may have, the lowest of several (`get_free_block`)."""
        keys = self.sorted.get(stream)
        if not keys:
            return None
        place = bisect_left(keys, size << _SHIFT)
        if place == len(keys):
            return None
        block = self.free[keys[place] & _ADDRESS]
        if block.range is not None:
            place = self._among_expandable(keys, place, settings)
            if place == len(keys):
                return None
            block = self.free[keys[place] & _ADDRESS]
        limit = settings.max_split_size_bytes
        if limit is not None:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + settings.max_non_split_rounding_bytes:
                return None
        del keys[place]
        del self.free[block.address]
        return block

    def ordered(self, stream: int | None = None) -> list[Block]:
        """Free blocks by stream, size and address."""
        streams = sorted(self.sorted) if stream is None else [stream]
        return [self.free[key & _ADDRESS] for each in streams for key in self.sorted.get(each, ())]

    def _among_expandable(self, keys: list[int], place: int, settings: AllocatorSettings) -> int:
        if not settings.expandable_segments:  # they were switched off: only others will do
            while place < len(keys) and self.free[keys[place] & _ADDRESS].range is not None:
                place += 1
            return place
        # What counts is the size that a block can grow to.
        block = self.free[keys[place] & _ADDRESS]
        while block.range is not None and place + 1 < len(keys):
            other = self.free[keys[place + 1] & _ADDRESS]
            if _expanded(other) >= _expanded(block):
                break
            block, place = other, place + 1
        return place


def _expanded(block: Block) -> int:
    behind = block.next
    return block.size + (behind.size if behind is not None and not behind.is_mapped else 0)


def merge(block: Block, other: Block | None) -> None:
    """Make one of a block and a free neighbour, which is taken out of its pool (`try_merge_blocks`)."""
    if other is None or other.state != FREE or other.is_mapped != block.is_mapped:
        return
    if other.is_mapped:
        block.pool.remove(other)
    else:
        del block.pool.unmapped[other.address]
    if other is block.previous:
        block.address = other.address
        block.previous = other.previous
        if block.previous is not None:
            block.previous.next = block
    else:
        block.next = other.next
        if block.next is not None:
            block.next.previous = block
    block.size += other.size


def lay_blocks(whole: Block, blocks: Iterable[pieces.Block]) -> list[Block]:
    """Cut a segment into blocks that are known, in the order of addresses; the rest is free."""
    laid = []
    rest: Block | None = whole
    for known in blocks:
        assert rest is not None, "blocks overlap or reach beyond their segment"
        block = rest
        if known.address > rest.address:
            block = rest.split(known.address - rest.address)
            rest.pool.insert(rest)
        rest = block.split(known.size_bytes) if block.size > known.size_bytes else None
        block.requested = known.requested_bytes
        block.state = PENDING if known.is_pending else USED
        laid.append(block)
    if rest is not None:
        rest.pool.insert(rest)
    return laid
