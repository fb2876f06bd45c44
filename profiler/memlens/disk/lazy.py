"""A rank's folder whose streams are read when they are asked for, and can be dropped again.

A run may have thousands of ranks: opening it reads a small JSON file of each, and nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from memlens.answers import OutOfMemory
from memlens.disk.format import RANK_FILE
from memlens.disk.headers import RANK_FIELDS, read_header
from memlens.disk.oom import read_bundles
from memlens.disk.reader import RankData, read_rank
from memlens.errors import CaptureError

__all__ = ["RankFolder"]


class RankFolder:
    """One rank's folder.

    Args:
        path: the folder.

    Raises:
        CaptureError: its header is damaged, or not ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] = read_header(path / RANK_FILE, RANK_FIELDS, what="rank folder")
        self._data: RankData | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the streams: the copy in another process reads them itself."""
        return self.__dict__ | {"_data": None}

    @property
    def data(self) -> RankData:
        """Its streams, kept until `release`.

        Raises:
            CaptureError: they are damaged, or not ours.
        """
        if self._data is None:
            data = read_rank(self.path)
            promised = data.header.get("device_events")
            if promised is not None and promised != _count(data):
                raise CaptureError(
                    f"damaged capture: {self.path} holds other events than {RANK_FILE} promises"
                )
            self._data = data
        return self._data

    @property
    def bundles(self) -> tuple[OutOfMemory, ...]:
        """Requests for memory that failed; read without the streams."""
        return self._data.bundles if self._data is not None else read_bundles(self.path)[0]

    @property
    def size_bytes(self) -> int:
        """Of the streams on disk."""
        return sum(path.stat().st_size for path in self.path.glob("*.arrow"))

    @property
    def devices(self) -> list[int]:
        """Positions of the devices that anything was recorded of; the first one if of none.

        Raises:
            CaptureError: several come into question, nothing was promised, and the streams are damaged.
        """
        if len(self.header["devices"]) == 1:
            return [0]
        return [device for device, count in enumerate(self._device_events) if count] or [0]

    def events(self, device: int) -> int:
        """How many allocations and frees were recorded of a device.

        Raises:
            CaptureError: nothing was promised, and the streams are damaged.
        """
        return self._device_events[device]

    def release(self) -> None:
        """Forget the streams; whoever asks next reads them again."""
        self._data = None

    @property
    def _device_events(self) -> list[int]:
        promised = self.header.get("device_events")
        if promised is not None and len(promised) == len(self.header["devices"]):
            return list(promised)
        return _count(self.data)


def _count(data: RankData) -> list[int]:
    """Events of each device."""
    found = np.bincount(data.events["device"], minlength=len(data.header["devices"]))
    return [int(count) for count in found]
