"""What each stretch of the allocator's memory is at one moment: handed out, or free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memlens.allocator.regions import Regions, Segment
from memlens.allocator.settings import SMALL_BYTES

__all__ = ["Block", "FreePiece", "PieceMap", "State"]


@dataclass(frozen=True)
class Block:
    """A piece that is handed out."""

    address: int
    size_bytes: int
    """What the allocator set aside."""
    requested_bytes: int
    stream: int = 0
    is_pending: bool = False
    """It was given back, but another stream still uses it."""


@dataclass(frozen=True)
class FreePiece:
    """A piece that the allocator keeps for later."""

    address: int
    size_bytes: int
    segment: Segment

    @property
    def is_whole(self) -> bool:
        """Nothing of its segment is in use: it could go back to the device."""
        return self.size_bytes == self.segment.size_bytes


@dataclass(frozen=True)
class State:
    """What the allocator holds at a moment."""

    segments: tuple[Segment, ...]
    """In the order of addresses."""
    free: tuple[FreePiece, ...]
    """In the order of addresses."""
    blocks: dict[int, int]
    """Size of every block that is handed out or pending, by its address."""
    pending: frozenset[int]
    """Addresses of blocks that were given back, and that other streams still use."""

    @property
    def reserved_bytes(self) -> int:
        """What is taken from the device."""
        return sum(segment.size_bytes for segment in self.segments)

    def free_in(
        self, *, is_small: bool | None = None, stream: int | None = None
    ) -> list[FreePiece]:
        """Free pieces, largest first: the pieces that requests of a pool and a stream can get.

        Args:
            is_small: of the pool for requests of up to 1 MiB, or of the other one; None: both.
            stream: of this stream; None: all.
        """
        found = [
            piece
            for piece in self.free
            if (is_small is None or piece.segment.is_small == is_small)
            and (stream is None or piece.segment.stream == stream)
        ]
        return sorted(found, key=lambda piece: (-piece.size_bytes, piece.address))


class PieceMap:
    """Segments, tiled without gaps by free pieces and blocks.

    The dictionaries are open to `memlens.allocator.follow`, whose loop is too hot for calls.
    """

    def __init__(self) -> None:
        self.regions = Regions()
        self.free: dict[int, int] = {}
        """Size of each free piece, by its address."""
        self.ends: dict[int, int] = {}
        """Address of each free piece, by the address behind it."""
        self.blocks: dict[int, int] = {}
        """Size of each block, by its address; negative where no segment is known around it."""
        self.pending: set[int] = set()
        """Blocks that were given back, and that other streams still use."""
        self.bounds: dict[int, int] = {}
        """How many segments begin or end at an address: pieces do not merge across it."""
        self._recent = -1
        self._index: list[int] = []

    def reset(self) -> None:
        """Forget everything."""
        self.regions = Regions()
        for table in (self.free, self.ends, self.blocks, self.pending, self.bounds):
            table.clear()

    def index(self) -> None:
        """Prepare for many lookups; it is not kept up, and need not be."""
        self._index = sorted([*self.free, *self.blocks])

    def find(self, address: int) -> tuple[int, int] | None:
        """Address and size of the piece that holds an address."""
        place = bisect_right(self._index, address) - 1
        for begin in (address, self._recent, self._index[place] if place >= 0 else -1):
            size = self.free.get(begin) or self.blocks.get(begin, 0)
            if size > 0 and begin <= address < begin + size:
                return begin, size
        segment = self.regions.find(address)
        if segment is None:
            return None
        return next(piece for piece in self._tiles(segment) if address < sum(piece))

    def is_free(self, address: int, size_bytes: int) -> bool:
        """Whether a stretch lies in one free piece."""
        piece = self.find(address)
        return piece is not None and piece[0] in self.free and address + size_bytes <= sum(piece)

    def add(self, segment: Segment) -> None:
        """A segment came, and is free; what was there before is forgotten."""
        self.remove(segment.address, segment.size_bytes)
        self.regions.add(segment)
        self._bound(segment, 1)
        self.put_free(segment.address, segment.size_bytes)

    def remove(self, address: int, size_bytes: int) -> None:
        """A stretch goes back to the device, whatever it holds."""
        end = address + size_bytes
        self.clear(address, end)
        for segment in self.regions.overlapping(address, end):
            start, stop = max(segment.address, address), min(segment.end, end)
            piece = self.find(start)
            assert piece is not None  # made free just now
            self._take(*piece)
            self._lay(piece[0], start)
            self._lay(stop, sum(piece))
            self._bound(segment, -1)
        self.regions.remove(address, end)

    def put_free(self, address: int, size_bytes: int) -> None:
        """Make a piece free, which grows together with free neighbours in its segment."""
        end = address + size_bytes
        if end in self.free and end not in self.bounds:
            end += self.free.pop(end)
        if address in self.ends and address not in self.bounds:
            address = self.ends.pop(address)
        self._lay(address, end)

    def clear(self, address: int, end: int) -> None:
        """Forget all blocks that reach into a stretch: where it is ours, it is free thereafter."""
        for segment in self.regions.overlapping(address, end):
            piece = self.find(max(address, segment.address))
            while piece is not None and piece[0] < min(end, segment.end):
                begin, size = piece
                if begin in self.blocks and begin not in self.free:
                    self.pending.discard(begin)
                    self.put_free(begin, self.blocks.pop(begin))
                piece = self.find(begin + size)

    def cut(self, address: int, size_bytes: int, least_rest_bytes: int) -> int | None:
        """Hand out a piece from inside of a free one.

        Returns:
            Its size, which is larger where too little would be left; None: nothing fits there.
        """
        if not self.is_free(address, size_bytes):
            return None
        piece = self.find(address)
        assert piece is not None
        self._take(*piece)
        self._lay(piece[0], address)
        end = sum(piece)
        if end - address - size_bytes >= least_rest_bytes:
            self._recent = address + size_bytes
            self._lay(self._recent, end)
        else:
            size_bytes = end - address
        self.blocks[address] = size_bytes
        return size_bytes

    def state(self) -> State:
        """How it stands now."""
        segments, free, blocks = [], [], {}
        for segment in self.regions:
            tiles = list(self._tiles(segment))
            inside = {begin: size for begin, size in tiles if begin not in self.free}
            # A census does not tell the pool of a segment, and an expandable one can have any size; but
            # blocks as small as this are in the small pool only.
            if min(inside.values(), default=segment.size_bytes) <= SMALL_BYTES:
                segment = replace(segment, is_small=True)
            segments.append(segment)
            blocks.update(inside)
            free += [FreePiece(*tile, segment) for tile in tiles if tile[0] in self.free]
        strays = {
            address: -size
            for address, size in self.blocks.items()
            if size < 0 and self.regions.find(address) is None
        }
        return State(tuple(segments), tuple(free), blocks | strays, frozenset(self.pending))

    def _tiles(self, segment: Segment) -> Iterator[tuple[int, int]]:
        """Address and size of each piece."""
        place = segment.address
        while place < segment.end:
            size = self.free.get(place) or self.blocks[place]
            yield place, size
            place += size

    def _take(self, begin: int, size: int) -> None:
        del self.free[begin], self.ends[begin + size]

    def _lay(self, begin: int, end: int) -> None:
        if begin < end:
            self.free[begin] = end - begin
            self.ends[end] = begin

    def _bound(self, segment: Segment, count: int) -> None:
        if segment.is_expandable:
            return
        for bound in (segment.address, segment.end):
            self.bounds[bound] = self.bounds.get(bound, 0) + count
            if not self.bounds[bound]:
                del self.bounds[bound]
