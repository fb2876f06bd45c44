"""Blocks in the words of those who read about them: names, modules, stacks, parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.answers import Allocation, Frame, Part
from memlens.attribution.device import DeviceHistory
from memlens.attribution.lifetimes import FOREVER
from memlens.attribution.segments import PHASES
from memlens.disk.format import codes
from memlens.disk.reader import NameTables
from memlens.events import Category, Certainty, WeightKind

__all__ = ["BlockTexts"]

Array = npt.NDArray[Any]
_CATEGORIES = list(Category)
_CERTAINTIES = list(Certainty)
_WEIGHT = codes(Category)["weight"]


class BlockTexts:
    """Tells of the blocks of one device.

    Args:
        names: what numbers stand for.
        history: of the device.
    """

    def __init__(self, names: NameTables, history: DeviceHistory) -> None:
        self._names = names
        self._history = history
        self._stacks: dict[int, tuple[Frame, ...]] = {}
        """Those that were asked for: thousands of blocks come from a few places."""

    def allocation(self, number: int) -> Allocation:
        """All that is known of a block."""
        blocks, attribution = self._history.blocks, self._history.attribution
        place = int(attribution.segment[number])
        free_ns = int(blocks.free_ns[number])
        return Allocation(
            address=int(blocks.address[number]),
            size_bytes=int(blocks.size_bytes[number]),
            category=_CATEGORIES[attribution.category[number]],
            certainty=_CERTAINTIES[attribution.certainty[number]],
            name=self.tensor_name(int(attribution.name[number])),
            module=self.module_name(int(attribution.module[number])),
            phase=PHASES[self._history.segments.phase[place]],
            step=int(self._history.segments.step[place]),
            alloc_ns=int(blocks.alloc_ns[number]),
            free_ns=None if free_ns == FOREVER else free_ns,
            preexisting=bool(blocks.preexisting[number]),
            stack=self.stack(int(blocks.stack[number])),
            weight_kind=(
                self._weight_kind(number) if attribution.category[number] == _WEIGHT else None
            ),
            parts=self._parts(number),
            module_class=self._names.module.get(int(attribution.module[number]), ("", ""))[1],
        )

    def to_arrow(self) -> pa.Table:
        """Every block as a row of an Arrow table: what, where, from when to when."""
        attribution, blocks = self._history.attribution, self._history.blocks
        place = attribution.segment
        forever = blocks.free_ns == FOREVER
        return pa.table(
            {
                "alloc_ns": blocks.alloc_ns,
                "free_ns": pa.array(blocks.free_ns, mask=forever),
                "address": blocks.address,
                "size_bytes": blocks.size_bytes,
                "requested_bytes": blocks.requested_bytes,
                "preexisting": blocks.preexisting,
                "stack": blocks.stack,
                "category": _texts(attribution.category, [c.value for c in _CATEGORIES]),
                "certainty": _texts(attribution.certainty, [c.value for c in _CERTAINTIES]),
                "phase": _texts(self._history.segments.phase[place], [p.value for p in PHASES]),
                "step": self._history.segments.step[place],
                "module": _names(attribution.module, self.module_name),
                "name": _names(attribution.name, self.tensor_name),
            }
        )

    def module_name(self, number: int) -> str:
        """Qualified name; empty for none."""
        return self._names.module.get(number, ("", ""))[0]

    def tensor_name(self, number: int) -> str:
        """What observers call a tensor; empty for none."""
        return self._names.tensor.get(number, "")

    def _weight_kind(self, number: int) -> WeightKind:
        """Of a block; where several share it, of the first one of which it is known."""
        parts = self._history.attribution.parts
        names = [self._history.attribution.name[number], *parts.name[list(parts.of(number))]]
        kinds = (self._names.weight_kind.get(int(name)) for name in names)
        return next(
            (kind for kind in kinds if kind not in (None, WeightKind.UNKNOWN)), WeightKind.UNKNOWN
        )

    def _parts(self, number: int) -> tuple[Part, ...]:
        parts = self._history.attribution.parts
        return tuple(
            Part(
                name=self.tensor_name(int(parts.name[each])),
                module=self.module_name(int(parts.module[each])),
                offset_bytes=int(parts.offset_bytes[each]),
                size_bytes=int(parts.size_bytes[each]),
            )
            for each in parts.of(number)
        )

    def stack(self, number: int) -> tuple[Frame, ...]:
        """Frames of a stack, the outermost first."""
        if number not in self._stacks:
            self._stacks[number] = self._walk(number)
        return self._stacks[number]

    def _walk(self, number: int) -> tuple[Frame, ...]:
        frames: list[Frame] = []
        table = self._names.stack
        while (entry := table.get(number)) is not None and len(frames) < 1000:
            parent, function, place = entry
            file, _, line = place.rpartition(":")
            frames.append(Frame(function, file, int(line) if line.isdigit() else 0))
            if parent >= number:  # frames are numbered after the ones that called them
                break
            number = parent
        return tuple(reversed(frames))


def _names(numbers: Array, text_of: Callable[[int], str]) -> pa.DictionaryArray:
    """Texts of numbers, of which there are far fewer than rows."""
    known, row = np.unique(numbers, return_inverse=True)
    texts = [text_of(number) for number in known.tolist()]
    place = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    positions = np.array([place[text] for text in texts], np.int32)[row]
    return pa.DictionaryArray.from_arrays(pa.array(positions), pa.array(list(place), pa.string()))


def _texts(positions: Array, values: list[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(positions, pa.int8()), pa.array(values))
