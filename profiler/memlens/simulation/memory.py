"""The simulated device's memory: each storage without data is a block of the modelled allocator."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from time import time_ns
from typing import Any

import torch

from memlens.allocator.addresses import DriverAddresses
from memlens.allocator.caching import CachingAllocator
from memlens.allocator.settings import AllocatorSettings
from memlens.sources.base import Block
from memlens.sources.cuda_trace import blocks_of

__all__ = ["GIVEN_BACK", "DeviceMemory"]

GIVEN_BACK = -1
"""Between sizes of temporaries: those before are given back first."""


class DeviceMemory:
    """What lies where on the device.

    A storage is given an address when an operator has made it, and its block is given back when the
    storage is gone: torch keeps the Python object of a storage for as long as the storage itself.

    Args:
        settings: of the allocator, as PYTORCH_CUDA_ALLOC_CONF has them.
        total_bytes: what the device has in all; only queries are answered by it, requests never fail:
            where they would have is worked out afterwards.
    """

    def __init__(self, settings: AllocatorSettings, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.allocator = CachingAllocator(settings, place=DriverAddresses(), clock=time_ns)
        self.allocator.keeps_history = False
        self.stream = 0
        """Number of the current stream."""
        self.stack: Callable[[], int] | None = None
        """Numbers the Python stack that allocates; None: nobody wants to know."""
        self.lock = threading.Lock()
        """Held while the allocator changes."""
        self._late: deque[int] = deque()
        """Given back while it was held: by the garbage collector, in the middle of something, or by
        another thread."""
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._workspaces: dict[tuple[int, bool, bool], int] = {}

    # -- storages ------------------------------------------------------------------------------

    def take(self, storage: torch.UntypedStorage) -> None:
        """Give a storage its block, unless it has one."""
        key = storage._cdata
        if key in self._held:
            return
        size_bytes = storage.nbytes()
        address = self.malloc(size_bytes)

        def gone(_: object) -> None:
            del self._held[key]
            self.free(address)

        self._held[key] = (weakref.ref(storage, gone), address)

    def resize(self, storage: torch.UntypedStorage) -> None:
        """A storage has been resized: it has another block now, and the old one is given back."""
        held = self._held.pop(storage._cdata, None)
        if held is None:
            return
        self.take(storage)
        self.free(held[1])

    def address(self, storage: torch.UntypedStorage) -> int:
        """Where a storage lies; 0: nowhere on this device."""
        held = self._held.get(storage._cdata)
        return 0 if held is None else held[1]

    def record_stream(self, storage: torch.UntypedStorage, stream: int) -> None:
        """Another stream uses a storage."""
        address = self.address(storage)
        if address:
            self.allocator.record_stream(address, stream)

    # -- blocks that no tensor holds -----------------------------------------------------------

    def malloc(self, size_bytes: int) -> int:
        """Hand out a block on the current stream."""
        allocator = self.allocator
        with self.lock:
            self.settle()
            if allocator.pending:
                # The other streams are never behind: how far they overlap is not modelled.
                allocator.synchronize()
            if self.stack is not None:
                allocator.frames = (self.stack(),)  # type: ignore[assignment]
            return allocator.malloc(size_bytes, self.stream)

    def free(self, address: int) -> None:
        """Give a block back; may be called at any moment."""
        if not self.lock.acquire(blocking=False):
            self._late.append(address)
            return
        try:
            self.allocator.free(address)
            self.settle()
        finally:
            self.lock.release()

    def settle(self) -> None:
        """Give back what came while the allocator was at work; the lock is held."""
        while self._late:
            self.allocator.free(self._late.popleft())

    def pass_through(self, sizes: Sequence[int]) -> None:
        """A kernel's temporaries: alive together, and gone when it returns or at `GIVEN_BACK`."""
        alive: list[int] = []
        for size in (*sizes, GIVEN_BACK):
            if size != GIVEN_BACK:
                alive.append(self.malloc(size))
                continue
            for address in alive:
                self.free(address)
            alive.clear()

    def workspace(self, size_bytes: int, *, in_backward: bool, is_lt: bool = False) -> None:
        """A workspace of cuBLAS, or of cuBLASLt: one per handle and stream, made when needed, and kept.

        Each thread has a handle of its own, and the autograd engine runs on a thread of the device
        (`getCurrentCUDABlasHandle` in aten/src/ATen/cuda/CublasHandlePool.cpp).
        """
        key = (self.stream, in_backward, is_lt)
        if size_bytes and key not in self._workspaces:
            self._workspaces[key] = self.malloc(size_bytes)

    def drop_workspaces(self) -> None:
        """As `torch._C._cuda_clearCublasWorkspaces`."""
        for address in self._workspaces.values():
            self.free(address)
        self._workspaces.clear()

    def blocks(self) -> list[Block]:
        """Everything that the allocator holds, as a census."""
        return blocks_of(self.allocator.snapshot()["segments"])
