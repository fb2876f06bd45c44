"""What one rank of a run answers, of one device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.analysis.block_texts import BlockTexts
from memlens.analysis.growth import find_growth
from memlens.analysis.steps import StepBounds, step_bounds
from memlens.answers import (
    Allocation,
    Coverage,
    Gauge,
    Growth,
    ModuleUsage,
    OutOfMemory,
    Peak,
    Place,
    Slack,
    Step,
    Timeline,
)
from memlens.attribution.by_part import by_part
from memlens.attribution.device import DeviceHistory
from memlens.attribution.gauges import read_gauges
from memlens.attribution.lifetimes import Lifetimes
from memlens.attribution.rules import Attribution
from memlens.attribution.segments import PHASES, Segments
from memlens.disk.format import codes
from memlens.disk.lazy import RankFolder
from memlens.disk.reader import RankData
from memlens.events import Category, Certainty, WeightKind

if TYPE_CHECKING:
    from memlens.allocator.replay import Replayed
    from memlens.allocator.settings import AllocatorSettings

__all__ = ["RankCapture"]

Array = npt.NDArray[Any]
CATEGORIES = list(Category)
_CERTAINTIES = list(Certainty)
_WEIGHT = codes(Category)["weight"]
_WORKED_OUT = ("history", "_bounds", "texts", "coverage")
"""What a rank keeps of what it was asked."""


class RankCapture:
    """What one rank recorded of one device. Times are nanoseconds since the Unix epoch."""

    def __init__(
        self, source: RankData | RankFolder, rank: int, device: int, launch: int = 0
    ) -> None:
        self.rank = rank
        self.launch = launch
        """Which start of the job it belongs to, from 0 on."""
        self.device: str = str(source.header["devices"][device])
        self.header: dict[str, Any] = source.header
        """What `rank.json` says."""
        self._source = source
        self._device = device

    def __getstate__(self) -> dict[str, Any]:
        """Without what was worked out: the copy in another process reads for itself."""
        return {name: self.__dict__[name] for name in self.__dict__ if name not in _WORKED_OUT}

    @property
    def sharding(self) -> tuple[str, ...]:
        """How the training is spread over ranks, as far as adapters know: `ZeRO 2`, `FSDP2`, `DDP`."""
        return tuple(self.header.get("sharding") or ())

    @property
    def events(self) -> int:
        """How many allocations and frees were recorded, the census included."""
        if isinstance(self._source, RankFolder):
            return self._source.events(self._device)
        return int(np.count_nonzero(self._source.events["device"] == self._device))

    @property
    def size_bytes_on_disk(self) -> int:
        """Of the streams, or 0 if there are none."""
        return self._source.size_bytes if isinstance(self._source, RankFolder) else 0

    def release(self) -> None:
        """Forget what was read and worked out; the next question reads it again.

        For those who go through more ranks than fit into memory.
        """
        for name in _WORKED_OUT:
            self.__dict__.pop(name, None)
        if isinstance(self._source, RankFolder):
            self._source.release()

    @property
    def _data(self) -> RankData:
        return self._source.data if isinstance(self._source, RankFolder) else self._source

    # -- parts, worked out when first asked for; for those who go beyond the questions below -----

    @cached_property
    def history(self) -> DeviceHistory:
        """Events, marks and tags of the device, joined."""
        return DeviceHistory(self._data, self._device)

    @cached_property
    def texts(self) -> BlockTexts:
        """What the numbers of names, modules and stacks stand for."""
        return BlockTexts(self._data.names, self.history)

    @property
    def blocks(self) -> Lifetimes:
        """One row per block that was allocated."""
        return self.history.blocks

    @property
    def segments(self) -> Segments:
        """What the job did when."""
        return self.history.segments

    @property
    def attribution(self) -> Attribution:
        """The category of each block, and why."""
        return self.history.attribution

    @property
    def _running(self) -> Array:
        return self.history.running

    @cached_property
    def _bounds(self) -> list[StepBounds]:
        return step_bounds(self.blocks, self.segments, self._running)

    # -- questions -----------------------------------------------------------------------------

    @cached_property
    def coverage(self) -> Coverage:
        """How complete the capture is."""
        header, blocks = self._data.header, self.blocks
        lost = blocks.lost_events + (header.get("lost_events") or 0)
        problems = [*header["problems"], *self._data.problems, *self.history.problems]
        closed: bool = header["closed"]
        difference = self.history.witness_difference_bytes()
        return Coverage(
            complete=closed and not problems and not lost and not difference,
            lost_events=lost,
            blind_ns=self.history.blind_ns,
            uncovered_bytes=self.attribution.uncovered_bytes,
            witness_difference_bytes=difference,
            problems=tuple(problems),
            notes=tuple(header["notes"]),
        )

    def peak(self) -> Peak:
        """The moment with the most allocated bytes."""
        index = int(np.argmax(self._running)) if len(self._running) else -1
        time = int(self.blocks.time_ns[index]) if index >= 0 else 0
        place = self.place_at(time)
        return Peak(
            time_ns=time,
            step=place.step,
            phase=place.phase,
            module=place.module,
            allocated_bytes=int(self._running[index]) if index >= 0 else 0,
            reserved_bytes=self.history.reserved_bytes(index, None),
            categories=self._categories_after(index),
        )

    @property
    def reserved_peak_bytes(self) -> int | None:
        """Most bytes that the allocator had taken from the device; None: it takes none in advance."""
        return self.history.reserved_peak_bytes

    def slack_at(self, time_ns: int | None = None) -> Slack | None:
        """What the allocator has taken from the device and no tensor uses.

        Args:
            time_ns: the moment; None for the peak.

        Returns:
            None: the allocator takes nothing in advance (the CPU's).
        """
        event = self._moment(time_ns)
        reserved = self.history.reserved_bytes(event, time_ns)
        if reserved is None:
            return None
        alive = self._alive_after(event)
        allocated = int(self.blocks.size_bytes[alive].sum())
        requested = int(self.blocks.requested_bytes[alive].sum())
        return Slack(
            reserved_bytes=reserved,
            rounding_bytes=allocated - requested,
            cached_bytes=reserved - allocated,
        )

    @property
    def out_of_memory(self) -> tuple[OutOfMemory, ...]:
        """Requests that failed on this device, the first one first."""
        return tuple(each for each in self._source.bundles if each.device_index == self._device)

    @property
    def last_event_ns(self) -> int | None:
        """When something was last allocated or freed; None: never."""
        return int(self.blocks.time_ns[-1]) if len(self.blocks.time_ns) else None

    def gauges(self) -> tuple[Gauge, ...]:
        """Memory beside the allocator's count: in use on the device, pinned on the host."""
        return read_gauges(self._data, self.device)

    def place_at(self, time_ns: int) -> Place:
        """What the job was doing at a moment."""
        segment = int(self.segments.at(np.array([time_ns]))[0])
        return Place(
            step=int(self.segments.step[segment]),
            phase=PHASES[self.segments.phase[segment]],
            module=self.texts.module_name(int(self.segments.module[segment])),
        )

    def steps(self) -> tuple[Step, ...]:
        """Every training step that was recorded."""
        bounds = self._bounds
        peaks = self._sample(np.array([item.peak_event for item in bounds], np.int64))
        ends = self._sample(np.array([item.last_event for item in bounds], np.int64))
        return tuple(
            Step(
                step=item.step,
                start_ns=item.start_ns,
                end_ns=item.end_ns,
                peak_ns=item.peak_ns,
                peak_bytes=sum(at_peak.values()),
                end_bytes=sum(at_end.values()),
                categories=at_peak,
                end_categories=at_end,
            )
            for item, at_peak, at_end in zip(bounds, peaks, ends, strict=True)
        )

    def categories_at(self, time_ns: int) -> dict[Category, int]:
        """Bytes per category at a moment."""
        return self._categories_after(self._event_at(time_ns))

    def weights_at(self, time_ns: int | None = None) -> dict[WeightKind, int]:
        """Bytes of weights per kind at a moment: what trains, what is frozen, quantised, added.

        Args:
            time_ns: the moment; None for the peak.

        Returns:
            Every kind, also with 0; they sum to the bytes of the category weight.
        """
        alive = self._alive_after(self._moment(time_ns))
        weights = alive & (self.attribution.category == _WEIGHT)
        sums = dict.fromkeys(WeightKind, 0)
        rows = by_part(self.blocks, self.attribution, weights)
        for name, size in zip(rows.name.tolist(), rows.size_bytes.tolist(), strict=True):
            sums[self._data.names.weight_kind.get(name, WeightKind.UNKNOWN)] += size
        return sums

    def timeline(self, max_points: int | None = None) -> Timeline:
        """Bytes per category over time.

        Args:
            max_points: at most about so many entries. Of each bucket the highest and the last entry
                are kept, so that peaks and levels stay true. None: one entry per event.
        """
        index = np.arange(len(self._running))
        if max_points is not None and len(index) > max_points:
            edges = np.linspace(0, len(index), max(max_points // 2, 1) + 1).astype(np.int64)
            pairs = [
                (low + int(np.argmax(self._running[low:high])), high - 1)
                for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
            ]
            index = np.unique(np.array(pairs, np.int64).ravel())
        categories = {}
        for position, category in enumerate(CATEGORIES):
            chosen = self.attribution.category == position
            categories[category] = (
                self.blocks.running_bytes(chosen)[index]
                if np.any(chosen)
                else np.zeros(len(index), np.int64)
            )
        return Timeline(
            time_ns=self.blocks.time_ns[index],
            allocated_bytes=self._running[index],
            categories=categories,
            step_start_ns={item.step: item.start_ns for item in self._bounds},
        )

    def allocations_at(
        self, time_ns: int | None = None, top: int | None = 20
    ) -> tuple[Allocation, ...]:
        """Blocks alive at a moment, the largest first.

        Args:
            time_ns: the moment; None for the peak.
            top: how many; None for all.
        """
        alive = np.flatnonzero(self._alive_after(self._moment(time_ns)))
        order = np.argsort(-self.blocks.size_bytes[alive], kind="stable")
        return tuple(self.allocation(int(number)) for number in alive[order][:top])

    def modules_at(
        self, time_ns: int | None = None, top: int | None = 20
    ) -> tuple[ModuleUsage, ...]:
        """What each module holds at a moment, the one that holds most first.

        A block that parameters of several modules share counts for each by its part.

        Args:
            time_ns: the moment; None for the peak.
            top: how many; None for all.
        """
        alive = self._alive_after(self._moment(time_ns))
        rows = by_part(self.blocks, self.attribution, alive)
        module, category, size = rows.module, rows.category, rows.size_bytes
        held: dict[str, tuple[str, dict[Category, int]]] = {}
        groups, inverse = np.unique(
            np.stack([module, category.astype(np.int64)]), axis=1, return_inverse=True
        )
        sums = np.zeros(groups.shape[1], np.int64)
        np.add.at(sums, inverse.ravel(), size)
        for (number, kind), total in zip(groups.T.tolist(), sums.tolist(), strict=True):
            text, class_name = self._data.names.module.get(number, ("", ""))
            parts = held.setdefault(text, (class_name, {}))[1]
            parts[CATEGORIES[kind]] = parts.get(CATEGORIES[kind], 0) + total
        usages = [
            ModuleUsage(text, class_name, sum(parts.values()), parts)
            for text, (class_name, parts) in held.items()
        ]
        return tuple(sorted(usages, key=lambda usage: -usage.total_bytes)[:top])

    def growth(self, top: int = 10) -> tuple[Growth, ...]:
        """Groups of blocks that accumulate from step to step, the fastest first."""
        found = find_growth(self.blocks, self.attribution, self.segments, self._bounds)
        return tuple(
            Growth(
                category=CATEGORIES[self.attribution.category[item.example]],
                module=self.texts.module_name(int(self.attribution.module[item.example])),
                name=self._data.names.tensor.get(int(self.attribution.name[item.example]), ""),
                bytes_per_step=item.bytes_per_step,
                first_bytes=item.first_bytes,
                last_bytes=item.last_bytes,
                steps=item.steps,
                stack=self.texts.stack(int(self.blocks.stack[item.example])),
            )
            for item in found[:top]
        )

    def allocation(self, row: int) -> Allocation:
        """The block in a row of `to_arrow()`."""
        return self.texts.allocation(row)

    def to_arrow(self) -> pa.Table:
        """Every block as a row of an Arrow table: what, where, from when to when.

        `texts.stack` has the frames of the numbers in the column `stack`.
        """
        return self.texts.to_arrow()

    @property
    def allocator_settings(self) -> AllocatorSettings:
        """Those under which it was recorded; torch's defaults where that is not known."""
        return self.history.settings

    def replayed(
        self, settings: AllocatorSettings | None = None, capacity_bytes: int | None = None
    ) -> Replayed:
        """What the model of CUDA's allocator makes of this rank's requests.

        Args:
            settings: of the allocator; None: as they were recorded.
            capacity_bytes: what the device has for it; None: enough.
        """
        from memlens.allocator.replay import replay

        return replay(self.history.told, self.history.settings, settings, capacity_bytes)

    def block_of(self, event: int) -> Allocation:
        """The block that an event of a replay allocates.

        Args:
            event: as `memlens.allocator.replay.Shortage` counts.
        """
        row = int(np.flatnonzero(~self.history.is_census)[event])
        position = int(np.searchsorted(self.blocks.row, row))
        return self.allocation(int(np.flatnonzero(self.blocks.first == position)[0]))

    # -- helpers -------------------------------------------------------------------------------

    def _event_at(self, time_ns: int) -> int:
        return int(np.searchsorted(self.blocks.time_ns, time_ns, side="right")) - 1

    def _moment(self, time_ns: int | None) -> int:
        if time_ns is not None:
            return self._event_at(time_ns)
        return int(np.argmax(self._running)) if len(self._running) else -1

    def _alive_after(self, event: int) -> Array:
        return (self.blocks.first <= event) & (self.blocks.last > event)

    def _categories_after(self, event: int) -> dict[Category, int]:
        alive = self._alive_after(event)
        sums = np.zeros(len(CATEGORIES), np.int64)
        np.add.at(sums, self.attribution.category[alive], self.blocks.size_bytes[alive])
        return dict(zip(CATEGORIES, sums.tolist(), strict=True))

    def _sample(self, events: Array) -> Iterator[dict[Category, int]]:
        """Bytes per category after each of some events (-1: before all)."""
        columns = []
        for position in range(len(CATEGORIES)):
            chosen = self.attribution.category == position
            if np.any(chosen):
                level = self.blocks.running_bytes(chosen)[events]
                columns.append(np.where(events < 0, 0, level).tolist())
            else:
                columns.append([0] * len(events))
        return (dict(zip(CATEGORIES, row, strict=True)) for row in zip(*columns, strict=True))
