"""What a test needed: a capture's figures, without what other tests have left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.analysis.alike import pattern
from memlens.analysis.frames import slashes, user_frames
from memlens.answers import Allocation, Frame, Place
from memlens.capture import Capture, RankCapture
from memlens.events import Category
from memlens_integrations.pytest_plugin.budget import MEASURES, PEAK, RESERVED

__all__ = ["Held", "Measurement", "Site"]

_CATEGORIES = list(Category)


@dataclass(frozen=True, order=True)
class Site:
    """What is alike in blocks that count as one: purpose, owner, place in the code."""

    category: str
    what: str
    """The tensor's name, or else the module at work; the numbers of layers are left out."""
    where: str
    """`function (file.py)`; empty: it was there before recording, or there are no stacks."""


@dataclass
class Held:
    """What the blocks of a site hold together."""

    size_bytes: int = 0
    line: int = 0
    """In the file; of one that several lines share, the first. 0: not known."""


class Measurement:
    """What one test needed, of the device that needs most.

    Args:
        capture: of the test's body.
        held: addresses that count, of what was there before; None: all.
        root: to which files are shown relative.
    """

    def __init__(self, capture: Capture, held: Set[int] | None, root: Path) -> None:
        self._folder = slashes(str(root)).rstrip("/") + "/"
        devices = [_Device(rank, held) for rank in capture.ranks]
        self._device = max(devices, key=lambda each: each.most_bytes(MEASURES[PEAK]))

    @property
    def rank(self) -> RankCapture:
        """The device's part of the capture."""
        return self._device.rank

    @property
    def source(self) -> str:
        """What was recorded: `cpu` or `cuda`."""
        return str(self.rank.header["source"])

    @cached_property
    def most_bytes(self) -> dict[str, int]:
        """By what can be limited: the most that it came to at any moment; `reserved` only if known."""
        found = {
            name: self._device.most_bytes(members)
            for name, members in MEASURES.items()
            if name != RESERVED
        }
        if self.rank.reserved_peak_bytes is not None:
            found[RESERVED] = self.rank.reserved_peak_bytes
        return found

    @cached_property
    def peak_place(self) -> Place:
        """What the test was doing at its peak."""
        event = self._device.when_most(MEASURES[PEAK])
        return self.rank.place_at(int(self.rank.blocks.time_ns[event]) if event >= 0 else 0)

    @cached_property
    def left_out_bytes(self) -> int:
        """What other tests have left behind, and what therefore does not count."""
        blocks = self.rank.blocks
        return int(blocks.size_bytes[~self._device.counted].sum())

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the figures may be wrong, one sentence each."""
        coverage = self.rank.coverage
        lost = (f"{coverage.lost_events:,} events were lost",) if coverage.lost_events else ()
        return (*coverage.problems, *lost)

    def sites(self, name: str) -> dict[Site, Held]:
        """Who holds it, at the moment when something that can be limited was at its most."""
        members = MEASURES[PEAK if name == RESERVED else name]
        found: dict[Site, Held] = {}
        for block in self._device.alive_when_most(members):
            frame = user_frames(block.stack, 1)[0] if block.stack else None
            where = f"{frame.function} ({self._file(frame)})" if frame else ""
            for what, size_bytes in _owners(block):
                held = found.setdefault(Site(block.category.value, what, where), Held())
                held.size_bytes += size_bytes
                if frame and (not held.line or frame.line < held.line):
                    held.line = frame.line
        return found

    def _file(self, frame: Frame) -> str:
        """A path that is the same on another machine."""
        file = slashes(frame.file)
        for root in (self._folder, "site-packages/", "dist-packages/"):
            _, found, rest = file.partition(root)
            if found:
                return rest
        return file


class _Device:
    """One device of a capture, and which of its blocks count."""

    def __init__(self, rank: RankCapture, held: Set[int] | None) -> None:
        self.rank = rank
        blocks = rank.blocks
        self.counted: npt.NDArray[Any] = np.ones(len(blocks.first), bool)
        if held is not None:
            known = np.array(sorted(held), blocks.address.dtype)
            self.counted = ~blocks.preexisting | np.isin(blocks.address, known)

    def _chosen(self, members: Sequence[Category]) -> npt.NDArray[Any]:
        numbers = [_CATEGORIES.index(member) for member in members]
        return self.counted & np.isin(self.rank.attribution.category, numbers)

    def most_bytes(self, members: Sequence[Category]) -> int:
        running = self.rank.blocks.running_bytes(self._chosen(members))
        return int(running.max()) if len(running) else 0

    def when_most(self, members: Sequence[Category]) -> int:
        """The event after which they hold most, the first of several; -1: nothing was recorded."""
        running = self.rank.blocks.running_bytes(self._chosen(members))
        return int(np.argmax(running)) if len(running) else -1

    def alive_when_most(self, members: Sequence[Category]) -> Iterator[Allocation]:
        """What they consist of at that moment."""
        event, blocks = self.when_most(members), self.rank.blocks
        alive = self._chosen(members) & (blocks.first <= event) & (blocks.last > event)
        yield from map(self.rank.allocation, np.flatnonzero(alive).tolist())


def _owners(block: Allocation) -> Iterator[tuple[str, int]]:
    """What a block, or each part of a shared one, is called; and its bytes."""
    rest_bytes = block.size_bytes
    for part in block.parts:
        rest_bytes -= part.size_bytes
        yield pattern(part.name or part.module), part.size_bytes
    if rest_bytes or not block.parts:
        yield pattern(block.name or block.module), rest_bytes
