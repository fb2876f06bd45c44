"""The host in a simulation: tensors that are too large to have data there, and pinned memory."""

from __future__ import annotations

import weakref
from typing import Any

import torch

__all__ = ["HostMemory"]


class HostMemory:
    """Counts storages on the host, for as long as they are there.

    Small tensors are real, and are not counted unless they are pinned.
    """

    def __init__(self) -> None:
        self._large = _Storages()
        self._pinned = _Storages()

    def take(self, storage: torch.UntypedStorage) -> None:
        """Count a storage without data, once."""
        self._large.add(storage, storage.nbytes())

    def pin(self, storage: torch.UntypedStorage) -> None:
        """It is pinned from here on; its allocator hands out powers of two (CachingHostAllocator.h)."""
        size_bytes = storage.nbytes()
        self._pinned.add(storage, 1 << (size_bytes - 1).bit_length() if size_bytes else 0)

    def is_pinned(self, storage: torch.UntypedStorage) -> bool:
        """Whether it is."""
        return storage._cdata in self._pinned.held

    def peaks(self) -> tuple[int, int]:
        """Most bytes of large tensors, and of pinned ones, since this was asked last."""
        return self._large.take_peak(), self._pinned.take_peak()


class _Storages:
    def __init__(self) -> None:
        self.held: dict[int, weakref.ref[Any]] = {}
        self._bytes = 0
        self._peak_bytes = 0

    def add(self, storage: torch.UntypedStorage, size_bytes: int) -> None:
        key = storage._cdata
        if key in self.held:
            return

        def gone(_: object) -> None:
            del self.held[key]
            self._bytes -= size_bytes

        self.held[key] = weakref.ref(storage, gone)
        self._bytes += size_bytes
        self._peak_bytes = max(self._peak_bytes, self._bytes)

    def take_peak(self) -> int:
        peak_bytes, self._peak_bytes = self._peak_bytes, self._bytes
        return peak_bytes
