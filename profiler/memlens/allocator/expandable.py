"""Expandable segments of the allocator's model: memory is mapped into a range page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memlens.allocator.pools import FREE, AddressRange, Block, Pool, merge

__all__ = ["find_room", "map_block", "mapped_part", "new_range", "unmap_block"]


def find_room(pool: Pool, stream: int, size: int) -> Block | None:
    """Lowest block from which on so much is free or can be mapped (`find_expandable_block`)."""
    for address in sorted(pool.unmapped):
        block = pool.unmapped[address]
        if block.stream != stream:
            continue
        before = block.previous
        if before is not None and before.state == FREE:
            block = before
        room, at = 0, block
        for at in _free_from(block):
            room += at.size
            if room >= size:
                return block
    return None


def _free_from(block: Block | None) -> Iterator[Block]:
    while block is not None and block.state == FREE:
        yield block
        block = block.next


def new_range(pool: Pool, stream: int, address: int, size: int, page: int) -> Block:
    """A range of addresses, of which nothing is mapped yet."""
    size = -(-size // page) * page
    block = Block(address, size, stream, pool)
    block.range = AddressRange(address, size, page)
    block.is_mapped = False
    pool.unmapped[address] = block
    return block


def mapped_part(block: Block, address: int, size: int) -> tuple[Block, Block]:
    """Map a part of an unmapped block, as it is found when a history begins late.

    Returns:
        The part, in no pool, and what is unmapped behind it.
    """
    pool = block.pool
    del pool.unmapped[block.address]
    if address > block.address:
        pool.unmapped[block.address] = block
        block = block.split(address - block.address)
    rest = block.split(size)
    pool.unmapped[rest.address] = rest
    block.is_mapped = True
    return block, rest


def map_block(block: Block, size: int, may_take: Callable[[int], bool]) -> tuple[int, int] | None:
    """Put memory behind the beginning of an unmapped block, which becomes a free one.

    Returns:
        Address and bytes of what was mapped, in whole pages; None: the device has too little left.
    """
    assert block.range is not None and not block.is_mapped
    size = -(-size // block.range.page) * block.range.page
    if not may_take(size):
        return None
    mapped = block.address, size
    pool = block.pool
    del pool.unmapped[block.address]
    if size < block.size:
        rest = block.split(size)
        pool.unmapped[rest.address] = rest
    block.is_mapped = True
    merge(block, block.previous)
    merge(block, block.next)
    pool.insert(block)
    return mapped


def unmap_block(block: Block) -> tuple[int, int] | None:
    """Take the memory of all whole pages from a free block.

    Returns:
        Address and bytes of what was unmapped; None: it holds no whole page. The block is then the
        unmapped part; what is left of it at its ends are free blocks of their own.
    """
    assert block.range is not None
    base, page = block.range.address, block.range.page
    start = base + -(-(block.address - base) // page) * page
    end = base + (block.address + block.size - base) // page * page
    if start >= end:
        return None
    pool = block.pool
    pool.remove(block)
    if start > block.address:
        before = Block(block.address, start - block.address, block.stream, pool)
        before.range = block.range
        before.previous, before.next = block.previous, block
        if before.previous is not None:
            before.previous.next = before
        block.previous = before
        block.address, block.size = start, block.size - before.size
        pool.insert(before)
    if end < block.address + block.size:
        pool.insert(block.split(end - block.address))
    block.is_mapped = False
    merge(block, block.previous)
    merge(block, block.next)
    pool.unmapped[block.address] = block
    return start, end - start
