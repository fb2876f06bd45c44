"""Follows one rank while it is recorded: what it holds now, its last step, its peaks.

Sizes are those of the whole run, to the byte. So are categories, but for what only the future tells: a
step's are settled when the step after it has ended, and stay as they are. A block that is recognised
later than that (a model that is first called in step 9, say, whose weights count as weights of every step
once the run is read as a whole) counts as what it is from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memlens.analysis.steps import step_bounds
from memlens.answers import Peak, Step
from memlens.attribution.segments import PHASES
from memlens.disk.reader import NameTables, names_of
from memlens.events import Category
from memlens.live.tail import Columns, RankTail
from memlens.live.window import CATEGORIES, LateError, Stretch, Window

__all__ = ["DeviceState", "RankFollower"]

TREND_STEPS = 240
"""How many steps' peaks are kept."""


@dataclass(frozen=True)
class DeviceState:
    """What is known of one device of a rank."""

    device: str
    now: Peak
    """The last moment of which anything is known."""
    peak: Peak
    """The run's, so far."""
    step: Step | None
    """The last one that has ended; None: none has."""
    step_reserved_bytes: int | None
    """What was taken from the device at that step's peak; None: nothing is taken in advance."""
    trend: tuple[tuple[int, int], ...]
    """Number and peak bytes of the last steps that have ended."""


@dataclass(frozen=True)
class _Spot:
    """A moment in numbers; names of modules may be told later."""

    time_ns: int
    step: int
    phase: int
    module: int
    allocated_bytes: int
    reserved_bytes: int | None
    categories: dict[Category, int]


class RankFollower:
    """Reads a rank's folder as it grows.

    Args:
        folder: the rank's folder.

    Raises:
        CaptureError: it is damaged, or not ours.
    """

    def __init__(self, folder: Path) -> None:
        self._tail = RankTail(folder)
        self._spare = 0
        self._begin()

    def _begin(self) -> None:
        self._names = NameTables({}, {}, {}, {})
        devices = range(len(self.header["devices"]))
        self._devices = [_Device(number, self._spare) for number in devices]

    @property
    def header(self) -> dict[str, Any]:
        """What `rank.json` said when it was last read."""
        return self._tail.header

    @property
    def states(self) -> tuple[DeviceState, ...]:
        """One per device of which anything was recorded."""
        found = [
            device.state(str(name), self._names)
            for name, device in zip(self.header["devices"], self._devices, strict=True)
        ]
        return tuple(state for state in found if state is not None)

    @property
    def rows(self) -> int:
        """How many rows are kept in memory; bounded, however long the run."""
        return sum(device.window.rows for device in self._devices)

    def poll(self) -> bool:
        """Read what is new.

        Returns:
            Whether anything was.

        Raises:
            CaptureError: a stream is damaged.
        """
        self._tail.read_header()
        new = self._tail.read()
        if not new:
            return False
        try:
            self._take(new)
        except LateError:  # from the start, and with more patience from then on
            self._spare = 2 * self._spare + 1
            self._tail = RankTail(self._tail.folder)
            self._begin()
            self._take(self._tail.read())
        return True

    def _take(self, new: dict[str, Columns]) -> None:
        if "names" in new:
            found = names_of(new["names"])
            self._names.module.update(found.module)
            self._names.scope.update(found.scope)
        for device in self._devices:
            device.window.add(new)
        cuts = [device.update(self.header, self._names) for device in self._devices]
        for device in self._devices:
            if device.is_idle:
                device.window.forget(max((cut for cut in cuts if cut is not None), default=0))


class _Device:
    """One device's window, and what has been concluded of the time before it."""

    def __init__(self, number: int, spare: int) -> None:
        self.window = Window(number, spare)
        self.is_idle = True
        """Nothing was ever recorded of it."""
        self._now: _Spot | None = None
        self._peak: _Spot | None = None
        self._settled_peak: _Spot | None = None
        """Of the time before the window."""
        self._open: tuple[int, _Spot] | None = None
        """When the step began that the window begins in, and its peak before."""
        self._step: tuple[Step, int | None] | None = None
        self._trend: dict[int, int] = {}

    def state(self, name: str, names: NameTables) -> DeviceState | None:
        if self._now is None or self._peak is None:
            return None
        return DeviceState(
            device=name,
            now=_as_peak(self._now, names),
            peak=_as_peak(self._peak, names),
            step=self._step[0] if self._step else None,
            step_reserved_bytes=self._step[1] if self._step else None,
            trend=tuple(self._trend.items()),
        )

    def update(self, header: dict[str, Any], names: NameTables) -> int | None:
        """Work out what the window holds, and let it begin anew where it can.

        Returns:
            Where it begins anew.
        """
        if not self.window.has_events:
            return None
        self.is_idle = False
        stretch = self.window.stretch(header, names)
        running = stretch.running
        if not len(running):
            return None
        first, count = stretch.first_event, len(running)
        self._now = _spot(stretch, count - 1)
        if first < count or self._settled_peak is None:
            self._peak = _higher(self._settled_peak, _highest(stretch, first, count))
        self._note_steps(stretch)
        cut_ns = self.window.cut_at(stretch)
        if cut_ns is not None:
            self._settle(stretch, cut_ns)
            self.window.shorten(stretch, cut_ns)
        return cut_ns

    def _note_steps(self, stretch: Stretch) -> None:
        """Steps that have ended, also those that were noted before: they may have changed."""
        numbers = stretch.segments.step_start_ns
        last = max(numbers, default=0)
        bounds = [
            each
            for each in step_bounds(stretch.blocks, stretch.segments, stretch.running)
            if each.step < last
            and (
                each.step in numbers
                or self.window.begin_ns is None
                or (self._open is not None and self._open[1].step == each.step)
            )
        ]
        if not bounds:
            return
        peaks = [each.peak_event for each in bounds]
        ends = [each.last_event for each in bounds]
        at_peak = _categories(stretch, peaks)
        at_end = _categories(stretch, ends)
        for each, peak, end in zip(bounds, at_peak, at_end, strict=True):
            start_ns, peak_ns, categories = each.start_ns, each.peak_ns, peak
            reserved = stretch.history.reserved_bytes(each.peak_event, None)
            if self._open is not None and self._open[1].step == each.step:
                start_ns, before = self._open
                if before.allocated_bytes >= sum(peak.values()):
                    peak_ns, categories = before.time_ns, before.categories
                    reserved = before.reserved_bytes
            self._trend[each.step] = sum(categories.values())
            step = Step(
                step=each.step,
                start_ns=start_ns,
                end_ns=each.end_ns,
                peak_ns=peak_ns,
                peak_bytes=sum(categories.values()),
                end_bytes=sum(end.values()),
                categories=categories,
                end_categories=end,
            )
            self._step = step, reserved
        while len(self._trend) > TREND_STEPS:
            del self._trend[next(iter(self._trend))]

    def _settle(self, stretch: Stretch, cut_ns: int) -> None:
        """Keep what was concluded of the time before a cut."""
        time_ns = stretch.blocks.time_ns
        end = int(np.searchsorted(time_ns, cut_ns, side="left"))
        if end > stretch.first_event:
            highest = _highest(stretch, stretch.first_event, end)
            self._settled_peak = _higher(self._settled_peak, highest)
        steps = stretch.segments.step_start_ns
        if cut_ns in steps.values():
            self._open = None
            return
        # Within a step.
        step = int(stretch.segments.step[stretch.segments.at(np.array([cut_ns]))[0]])
        start_ns = steps.get(step, int(time_ns[0]))
        first = max(int(np.searchsorted(time_ns, start_ns, side="left")) - 1, 0)
        highest = _highest(stretch, first, max(end, first + 1), step)
        if self._open is not None and self._open[1].step == step:
            start_ns = self._open[0]
            highest = _higher(self._open[1], highest)
        self._open = start_ns, highest


def _highest(stretch: Stretch, first: int, end: int, step: int | None = None) -> _Spot:
    """The first moment with the most bytes, after one of some events."""
    found = _spot(stretch, first + int(np.argmax(stretch.running[first:end])))
    return found if step is None else replace(found, step=step)


def _higher(before: _Spot | None, now: _Spot) -> _Spot:
    return now if before is None or now.allocated_bytes > before.allocated_bytes else before


def _spot(stretch: Stretch, event: int) -> _Spot:
    time_ns = int(stretch.blocks.time_ns[event])
    segments = stretch.segments
    where = int(segments.at(np.array([time_ns]))[0])
    return _Spot(
        time_ns=time_ns,
        step=int(segments.step[where]),
        phase=int(segments.phase[where]),
        module=int(segments.module[where]),
        allocated_bytes=int(stretch.running[event]),
        reserved_bytes=stretch.history.reserved_bytes(event, None),
        categories=_categories(stretch, [event])[0],
    )


def _categories(stretch: Stretch, events: list[int]) -> list[dict[Category, int]]:
    table = stretch.categories_after(np.array(events, np.int64))
    return [dict(zip(CATEGORIES, row, strict=True)) for row in table.tolist()]


def _as_peak(spot: _Spot, names: NameTables) -> Peak:
    return Peak(
        time_ns=spot.time_ns,
        step=spot.step,
        phase=PHASES[spot.phase],
        module=names.module.get(spot.module, ("", ""))[0],
        allocated_bytes=spot.allocated_bytes,
        reserved_bytes=spot.reserved_bytes,
        categories=spot.categories,
    )
