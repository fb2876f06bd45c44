"""Learns of the free of blocks from before the session, of which their allocator does not tell us."""

from __future__ import annotations

import weakref
from time import time_ns
from typing import Any

import torch

__all__ = ["Watch"]


class Watch:
    """Weak references to storages.

    One is called back when the storage's memory is released, also when autograd was the last to
    hold it: a storage keeps its Python object for as long as it lives.
    """

    def __init__(self) -> None:
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._freed: list[tuple[int, int, int]] = []

    def add(self, storage: torch.UntypedStorage) -> None:
        """Watch a storage."""
        address, size_bytes = storage.data_ptr(), storage.nbytes()

        def gone(_: object) -> None:
            self._watched.pop(address, None)
            self._freed.append((time_ns(), address, size_bytes))

        self._watched[address] = weakref.ref(storage, gone)

    def take(self) -> list[tuple[int, int, int]]:
        """(time, address, bytes) of those that are gone since the last call."""
        freed = self._freed[:]
        del self._freed[: len(freed)]  # in place: somebody may be about to append to this list
        return freed

    def clear(self) -> None:
        """Watch none any more."""
        self._watched.clear()
