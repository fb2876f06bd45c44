"""Reads what was measured beside the allocator's count."""

from __future__ import annotations

import numpy as np

from memlens.answers import Gauge
from memlens.disk.format import codes
from memlens.disk.reader import RankData
from memlens.events import MarkKind

__all__ = ["read_gauges"]

_GAUGE = codes(MarkKind)["gauge"]


def read_gauges(data: RankData, device: str) -> tuple[Gauge, ...]:
    """Gauges of a device and of the host, in the order in which they first came."""
    marks = data.marks
    rows = np.flatnonzero(marks["kind"] == _GAUGE)
    values: dict[int, list[int]] = {}
    for number, value in zip(
        marks["id"][rows].tolist(), marks["value"][rows].tolist(), strict=True
    ):
        values.setdefault(number, []).append(value)
    found = []
    for number, measured in values.items():
        what, of_device = data.names.scope.get(number, ("", ""))
        if of_device in ("", device):
            found.append(Gauge(what, of_device, max(measured), measured[-1]))
    return tuple(found)
