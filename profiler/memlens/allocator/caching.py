"""A model of torch's CUDA caching allocator: the same answer to every request, without a GPU.

    allocator = CachingAllocator(capacity_bytes=24 * 10**9)
    weights = allocator.malloc(1_000_000)
    allocator.free(weights)
    allocator.reserved_bytes, allocator.peak_reserved_bytes
    allocator.snapshot()        # as torch.cuda.memory._snapshot()

It takes the best fitting free block, splits it, and merges free neighbours; it takes segments from the
device, gives them back when it runs out or is asked to, and keeps a history, all as
c10/cuda/CUDACachingAllocator.cpp does (names in parentheses are of functions there). What it does not
model: private pools (CUDA graphs), and when a stream is done, which `complete` and `synchronize` tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from memlens.allocator import pieces
from memlens.allocator.expandable import find_room, map_block, mapped_part, new_range, unmap_block
from memlens.allocator.pools import FREE, PENDING, USED, Block, Pool, lay_blocks, merge
from memlens.allocator.regions import Segment
from memlens.allocator.settings import SMALL_BYTES, AllocatorSettings
from memlens.allocator.snapshot import snapshot
from memlens.errors import UsageError

__all__ = ["CachingAllocator", "OutOfDeviceMemory"]

FIRST_ADDRESS = 0x7000_0000_0000
ALIGNMENT = 2 * 2**20
"""The device hands out memory in pages of 2 MiB."""
UNLIMITED_BYTES = 2**40
"""For ranges of addresses, a device without a capacity has so much."""

Frames = Sequence[Mapping[str, object]]
Entry = tuple[str, int, int, int, int, Frames, str]
"""Action, address, bytes, stream, time (µs), frames, user metadata."""
Place = Callable[[int, int], "int | None"]


class OutOfDeviceMemory(MemoryError):
    """A request cannot be served: what torch.OutOfMemoryError is to the job."""

    def __init__(self, requested_bytes: int, reserved_bytes: int, allocated_bytes: int) -> None:
        super().__init__(
            f"{requested_bytes} bytes do not fit: {reserved_bytes} are reserved, of which "
            f"{allocated_bytes} allocated"
        )
        self.requested_bytes = requested_bytes
        self.reserved_bytes = reserved_bytes
        self.allocated_bytes = allocated_bytes


class CachingAllocator:
    """The allocator of one device.

    Args:
        settings: as of PYTORCH_CUDA_ALLOC_CONF.
        capacity_bytes: what the device has for it; None: no end.
        max_entries: how much history to keep; None: all, 0: none.
        first_address: where our own addresses begin.
        place: called with bytes and stream whenever memory is taken from the device; returns the
            address to be, or None for the next one of our own. Best fit depends on the addresses.
        clock: tells µs for the history; the default counts entries.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity_bytes: int | None = None,
        *,
        max_entries: int | None = None,
        first_address: int = FIRST_ADDRESS,
        place: Place | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.capacity_bytes = capacity_bytes
        self.small = Pool(is_small=True)
        self.large = Pool(is_small=False)
        self.blocks: dict[int, Block] = {}
        """What is handed out or pending, by address."""
        self.history: deque[Entry] = deque(maxlen=max_entries)
        self.frames: Frames = ()
        """Stack that the entries from here on carry."""
        self.user_metadata = ""
        """Text that the entries from here on carry."""
        self.requested_bytes = 0
        """What the job asked for, of all that is handed out or pending."""
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.active_bytes = self.peak_active_bytes = 0
        """Allocated, and what was given back but other streams still use."""
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.retries = 0
        """How often all cached segments had to be given back to serve a request."""
        self.out_of_memories = 0
        self.pending: dict[int, Block] = {}
        """What was given back, and still waits for other streams, by address."""
        self._place = place
        self._next_address = first_address
        self._clock = clock or count().__next__
        self.keeps_history = max_entries != 0
        """Entries are added; false costs nothing."""
        settings = self.settings
        self._by_age = settings.garbage_collection_threshold > 0 and capacity_bytes is not None
        self._is_plain = max(settings.roundup_power2_divisions) <= 1

    # -- what a job does -----------------------------------------------------------------------

    def malloc(self, requested_bytes: int, stream: int = 0) -> int:
        """Hand out a block.

        Returns:
            Its address; 0 for no bytes, as torch does.

        Raises:
            OutOfDeviceMemory: it does not fit, even after everything cached was given back.
        """
        if requested_bytes <= 0:
            return 0
        settings = self.settings
        if self._is_plain:
            size = (requested_bytes + 511) // 512 * 512
        else:
            size = settings.round_bytes(requested_bytes)
        pool = self.small if size <= SMALL_BYTES else self.large
        if self._by_age:
            pool.requests += 1
        block = pool.take(size, stream, settings)
        if block is None:
            block = self._grow_or_raise(pool, size, stream)
        if block.size != size:
            least_rest = settings.least_rest_bytes(size)
            if least_rest is not None and block.size - size >= least_rest:
                pool.insert(block.split(size))
        block.state = USED
        block.requested = requested_bytes
        block.frames = self.frames
        self.blocks[block.address] = block
        self.requested_bytes += requested_bytes
        self.allocated_bytes += block.size
        self.active_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        if self.active_bytes > self.peak_active_bytes:
            self.peak_active_bytes = self.active_bytes
        if self.keeps_history:
            self._record("alloc", block.address, requested_bytes, stream)
        return block.address

    def record_stream(self, address: int, stream: int) -> None:
        """Another stream uses a block: once given back, it waits until that stream is done."""
        block = self._used(address)
        if stream != block.stream:
            block.users = (block.users or set()) | {stream}

    def free(self, address: int) -> None:
        """Give a block back; nothing happens for address 0."""
        if address == 0:
            return
        block = self._used(address)
        self.allocated_bytes -= block.size
        if self.keeps_history:
            self._record("free_requested", address, block.requested, block.stream)
        if block.users:
            block.state = PENDING
            self.pending[address] = block
        else:
            self._finish(block)

    def complete(self, address: int) -> None:
        """The other streams are done with a block that was given back."""
        block = self.pending.pop(address, None)
        if block is None:
            raise UsageError(f"no block at {address:#x} waits for a stream")
        self._finish(block)

    def synchronize(self) -> None:
        """All streams are done."""
        for address in list(self.pending):
            self.complete(address)

    def empty_cache(self) -> None:
        """Give all that is cached back to the device (`release_cached_blocks`)."""
        self.synchronize()
        for pool in (self.large, self.small):
            expandable = []
            for block in pool.ordered():
                if block.range is not None:
                    expandable.append(block)
                elif block.is_whole:
                    self._release(block)
            for block in expandable:
                self._unmap(block)

    def reset_peaks(self) -> None:
        """Peaks begin anew."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_active_bytes = self.active_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def snapshot(self) -> dict[str, Any]:
        """What `torch.cuda.memory._snapshot()` would return."""
        return snapshot((self.small, self.large), self.blocks, self.history, self.settings)

    # -- for those who replay ------------------------------------------------------------------

    def restore(self, segments: Iterable[Segment], blocks: Iterable[pieces.Block]) -> None:
        """Begin with what an allocator held at some moment; the history tells nothing of it."""
        inside = deque(sorted(blocks, key=lambda block: block.address))
        ranges: dict[tuple[bool, int], Block] = {}
        for segment in sorted(segments, key=lambda segment: segment.address):
            pool = self.small if segment.is_small else self.large
            whole = self._restored(pool, segment, ranges)
            self.reserved_bytes += segment.size_bytes
            known = []
            while inside and inside[0].address < segment.end:
                known.append(inside.popleft())
            for block in lay_blocks(whole, known):
                self.blocks[block.address] = block
                self.requested_bytes += block.requested
                self.active_bytes += block.size
                if block.state == PENDING:
                    self.pending[block.address] = block
                else:
                    self.allocated_bytes += block.size
            self._keep_clear_of(segment.end)
        self.reset_peaks()

    def _restored(
        self, pool: Pool, segment: Segment, ranges: dict[tuple[bool, int], Block]
    ) -> Block:
        """A segment as one block, in no pool."""
        if not segment.is_expandable:
            return Block(segment.address, segment.size_bytes, segment.stream, pool)
        # Where a range begins and ends is not told: it begins with the first that is mapped of it.
        rest = ranges.get((pool.is_small, segment.stream))
        if rest is None or segment.end > rest.address + rest.size:
            size = max(self._range_bytes(), segment.size_bytes)
            page = self.settings.page_bytes(is_small=pool.is_small)
            rest = new_range(pool, segment.stream, segment.address, size, page)
            self._keep_clear_of(rest.address + rest.size)
        block, rest = mapped_part(rest, segment.address, segment.size_bytes)
        ranges[pool.is_small, segment.stream] = rest
        return block

    def _keep_clear_of(self, end: int) -> None:
        self._next_address = max(self._next_address, -(-end // ALIGNMENT) * ALIGNMENT)

    def is_cached(self, address: int, size_bytes: int) -> bool:
        """Whether a segment is cached as a whole, so that `give_back` can be called."""
        block = self.small.free.get(address) or self.large.free.get(address)
        return block is not None and block.is_whole and block.size == size_bytes

    def give_back(self, address: int) -> None:
        """Give one cached segment back to the device."""
        self._release(self.small.free.get(address) or self.large.free[address])

    # -- inside --------------------------------------------------------------------------------

    def _record(self, action: str, address: int, size: int, stream: int) -> None:
        self.history.append(
            (action, address, size, stream, self._clock(), self.frames, self.user_metadata)
        )

    def _used(self, address: int) -> Block:
        block = self.blocks.get(address)
        if block is None or block.state != USED:
            raise UsageError(f"no block is handed out at {address:#x}")
        return block

    def _finish(self, block: Block) -> None:
        """A block can be used again (`free_block`)."""
        if self.keeps_history:
            self._record("free_completed", block.address, block.requested, block.stream)
        del self.blocks[block.address]
        self.active_bytes -= block.size
        self.requested_bytes -= block.requested
        block.state, block.users = FREE, None
        merge(block, block.previous)
        merge(block, block.next)
        block.pool.insert(block)

    def _reserve(self, size: int) -> None:
        self.reserved_bytes += size
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes

    def _limit_bytes(self) -> int | None:
        if self.capacity_bytes is None:
            return None
        return int(self.settings.per_process_memory_fraction * self.capacity_bytes)

    def _may_take(self, size: int) -> bool:
        limit = self._limit_bytes()
        return limit is None or self.reserved_bytes + size <= limit

    def _grow_or_raise(self, pool: Pool, size: int, stream: int) -> Block:
        """Memory from the device for a block, if need be after giving some back (`malloc`)."""
        if self._by_age:
            self._collect_garbage()
        block = self._grow(pool, size, stream)
        if block is None and self._release_large_enough(pool, size, stream):
            block = self._grow(pool, size, stream)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._grow(pool, size, stream)
        if block is None:
            self.out_of_memories += 1
            # The entry's address is what the device has free.
            left = (self.capacity_bytes or 0) - self.reserved_bytes
            if self.keeps_history:
                self._record("oom", left, size, stream)
            raise OutOfDeviceMemory(size, self.reserved_bytes, self.allocated_bytes)
        return block

    def _grow(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A new block, in no pool (`alloc_block`)."""
        taken = self.settings.segment_bytes(size)
        if not self._may_take(taken):
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, size, stream)
        block = Block(self._address(taken, stream), taken, stream, pool)
        self._reserve(taken)
        if self.keeps_history:
            self._record("segment_alloc", block.address, taken, stream)
        return block

    def _address(self, size: int, stream: int) -> int:
        address = None if self._place is None else self._place(size, stream)
        if address is None:
            address = self._next_address
            self._next_address += -(-size // ALIGNMENT) * ALIGNMENT
        return address

    def _range_bytes(self) -> int:
        """Addresses for as much as there is, and an eighth more for holes (`find_expandable_block`)."""
        total = self.capacity_bytes or UNLIMITED_BYTES
        return total + total // 8

    def _expand(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A free block that is grown until it is large enough (`try_allocate_expandable_block`)."""
        block = find_room(pool, stream, size)
        if block is None:
            page = self.settings.page_bytes(is_small=pool.is_small)
            size_of_range = self._range_bytes()
            address = self._address(size_of_range + page, stream)
            block = new_range(pool, stream, address, size_of_range, page)
        if not block.is_mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            behind = block.next
            assert behind is not None and not behind.is_mapped
            if not self._map(behind, min(size - block.size, behind.size)):
                return None
            block = behind
        pool.remove(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        mapped = map_block(block, size, self._may_take)
        if mapped is None:
            return False
        self._reserve(mapped[1])
        if self.keeps_history:
            self._record("segment_map", *mapped, block.stream)
        return True

    def _unmap(self, block: Block) -> None:
        unmapped = unmap_block(block)
        if unmapped is None:
            return
        self.reserved_bytes -= unmapped[1]
        if self.keeps_history:
            self._record("segment_unmap", *unmapped, block.stream)
        if block.is_whole:
            del block.pool.unmapped[block.address]

    def _release(self, block: Block) -> None:
        """Give a segment back (`release_block`)."""
        block.pool.remove(block)
        self.reserved_bytes -= block.size
        if self.keeps_history:
            self._record("segment_free", block.address, block.size, block.stream)

    def _collect_garbage(self) -> None:
        """Give cached segments back by age, once much is reserved (`garbage_collect_cached_blocks`)."""
        allowed = self._limit_bytes() or 0
        excess = self.reserved_bytes - int(self.settings.garbage_collection_threshold * allowed)
        candidates = [
            block for block in self.large.ordered() if block.is_whole and block.range is None
        ]
        now = self.large.requests
        while excess > 0 and candidates:
            average = sum(now - block.born for block in candidates) / len(candidates)
            old = [block for block in candidates if now - block.born >= average]
            for block in old:
                self._release(block)
                excess -= block.size
            candidates = [block for block in candidates if now - block.born < average]

    def _release_large_enough(self, pool: Pool, size: int, stream: int) -> bool:
        """Give back blocks that are never split, until one would fit.

        (`release_available_cached_blocks`)
        """
        limit = self.settings.max_split_size_bytes
        if limit is None:
            return False
        size = max(size, limit)
        blocks = pool.ordered(stream)
        fitting = next((block for block in blocks if block.size >= size), None)
        if fitting is not None:
            if fitting.range is not None:
                return False
            self._release(fitting)
            return True
        released = 0
        for block in reversed(blocks):
            if released >= size or block.size < limit:
                break
            if block.range is None:
                self._release(block)
                released += block.size
        return released >= size
