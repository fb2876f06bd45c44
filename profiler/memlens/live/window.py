"""The last steps of one device, attributed as the whole run would be.

A window begins where the step before the current one did. What happened earlier is there as the blocks
that are still alive (`memlens.live.carried`), so that a look costs what those steps and blocks cost, and
nothing grows with the length of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memlens.attribution.device import DeviceHistory
from memlens.attribution.rules import attribute
from memlens.attribution.segments import Scope, segment
from memlens.attribution.workspaces import Workspaces
from memlens.disk.format import SCHEMAS, codes
from memlens.disk.reader import NameTables, RankData, columns_of
from memlens.events import Category, MarkKind
from memlens.live.carried import (
    Carried,
    census_of,
    chosen_segments,
    joined_segments,
    tags_worth_keeping,
)
from memlens.live.tail import Columns

__all__ = ["LateError", "Stretch", "Window"]

Array = npt.NDArray[Any]
_MARK = codes(MarkKind)
_WORK = [_MARK[name] for name in ("module_enter", "backward_enter", "optimizer_enter")]
MOST_ROWS = 200_000
"""Of a window that holds no whole step; then it is cut between two calls of a model."""
CATEGORIES = list(Category)


class LateError(Exception):
    """Something came that happened before the window: it has to be read from the start."""


class Stretch:
    """A window as it stands: blocks, what the job did, and the category of each block.

    Args:
        data: the rows, behind the census that stands for what was before them.
        device: position in the rank's list of devices.
        carried: what the census tells of; None: the window begins with the run.
        begin_ns: where the window begins.
    """

    def __init__(
        self, data: RankData, device: int, carried: Carried | None, begin_ns: int | None
    ) -> None:
        self.history = DeviceHistory(data, device)
        told = self.history.blocks
        segments = segment(data.marks, data.names)
        self.first_event = 0
        """The first one that is no census of ours."""
        if carried is not None and begin_ns is not None:
            self.first_event = int(np.searchsorted(told.time_ns, begin_ns, side="left"))
            segments = joined_segments(carried.segments, segments, begin_ns)
            rows, mine = carried.rows_of(told, self.first_event)
            self.blocks = carried.restored(told, rows, mine)
        else:
            self.blocks = told
        self.segments = segments
        self.found = attribute(self.blocks, segments, self._tags(), Workspaces.of(data.header))
        self.category = self.found.category
        if carried is not None:
            self.category = carried.keep_inherited(self.category, self.blocks, rows, mine)
        self.running = self.blocks.running_bytes()

    def _tags(self) -> Columns:
        """Those of what was seen while the source recorded, as `DeviceHistory.attribution` takes them."""
        tags, history = self.history.data.tags, self.history
        on, off = history.mark_times("recording_on"), history.mark_times("recording_off")
        time = tags["time_ns"]
        recorded = np.searchsorted(on, time, side="right") > np.searchsorted(off, time, side="left")
        return {name: column[recorded] for name, column in tags.items()}

    def categories_after(self, events: Array) -> Array:
        """Bytes after each of some events (-1: before all): a row per event, a column per category."""
        sums = np.zeros((len(events), len(CATEGORIES)), np.int64)
        if len(events) <= 4:
            for row, event in enumerate(events.tolist()):
                alive = (self.blocks.first <= event) & (self.blocks.last > event)
                np.add.at(sums[row], self.category[alive], self.blocks.size_bytes[alive])
            return sums
        for position in np.unique(self.category).tolist():
            running = self.blocks.running_bytes(self.category == position)
            sums[:, position] = np.append(running, 0)[events]
        return sums

    def keep(self, cut_ns: int) -> Carried:
        """What a window that begins at `cut_ns` has to know."""
        raw = self.history.blocks
        alive = np.flatnonzero((raw.alloc_ns < cut_ns) & (raw.free_ns >= cut_ns))
        alive = alive[np.argsort(raw.address[alive], kind="stable")]
        tags = self._tags()
        order = np.argsort(tags["time_ns"], kind="stable")
        order = order[tags["time_ns"][order] < cut_ns]
        tags = {name: column[order] for name, column in tags.items()}
        worth = tags_worth_keeping(tags, raw.address[alive], raw.alloc_ns[alive])
        return Carried(
            address=raw.address[alive],
            size_bytes=raw.size_bytes[alive],
            requested_bytes=raw.requested_bytes[alive],
            alloc_ns=self.blocks.alloc_ns[alive],
            preexisting=self.blocks.preexisting[alive],
            category=self.category[alive],
            tags={name: column[worth] for name, column in tags.items()},
            segments=chosen_segments(self.segments, np.unique(self.found.segment[alive])),
            census=census_of(self.history, alive, cut_ns),
        )


class Window:
    """The rows of the last steps of one device.

    Args:
        device: position in the rank's list of devices.
        spare: how many steps more it keeps than usual.
    """

    def __init__(self, device: int, spare: int = 0) -> None:
        self.device = device
        self._spare = spare
        self.begin_ns: int | None = None
        """None: it begins with the run."""
        self._carried: Carried | None = None
        self._rows: dict[str, Columns] = {
            table: columns_of(pa.Table.from_batches([], SCHEMAS[table]), table, 1)
            for table in ("events", "tags", "marks")
        }
        self._worked = self._has_modules = False
        self._step = 0

    def add(self, new: Mapping[str, Columns]) -> None:
        """Add rows that have come.

        Raises:
            LateError: some are of the time before the window.
        """
        for table, columns in new.items():
            if table not in self._rows:
                continue
            if "device" in columns:
                mine = columns["device"] == self.device
                columns = {name: column[mine] for name, column in columns.items()}
            time_ns = columns["time_ns"]
            if self.begin_ns is not None and len(time_ns) and time_ns.min() < self.begin_ns:
                raise LateError
            rows = self._rows[table]
            self._rows[table] = {
                name: np.concatenate([column, columns[name]]) for name, column in rows.items()
            }

    @property
    def rows(self) -> int:
        """How many rows it holds; blocks and tags from before it included."""
        own = sum(len(columns["time_ns"]) for columns in self._rows.values())
        carried = self._carried
        return own + (len(carried.address) + len(carried.tags["time_ns"]) if carried else 0)

    @property
    def has_events(self) -> bool:
        """Anything was recorded of the device, in the window or before it."""
        return self._carried is not None or len(self._rows["events"]["time_ns"]) > 0

    def forget(self, before_ns: int) -> None:
        """Drop what the job did before a moment, where nothing was recorded of the device so far."""
        marks, tags = self._rows["marks"], self._rows["tags"]
        stays = np.isin(marks["kind"], [_MARK["recording_on"], _MARK["recording_off"]])
        stays |= marks["time_ns"] >= before_ns
        self._rows["marks"] = {name: column[stays] for name, column in marks.items()}
        later = tags["time_ns"] >= before_ns
        self._rows["tags"] = {name: column[later] for name, column in tags.items()}

    def stretch(self, header: dict[str, Any], names: NameTables) -> Stretch:
        """Attribute what is there now."""
        rows = self._rows
        if self._carried is not None and self.begin_ns is not None:
            rows = self._with_carried(self._carried, self.begin_ns)
        data = RankData(header, rows["events"], rows["tags"], rows["marks"], names)
        return Stretch(data, self.device, self._carried, self.begin_ns)

    def _with_carried(self, carried: Carried, begin_ns: int) -> dict[str, Columns]:
        """The rows, behind others that tell how things stood when the window began."""
        # In the nanoseconds before: the census, then the tags, whose order counts.
        count = len(carried.tags["time_ns"])
        start_ns = begin_ns - count - 10
        tags = {**carried.tags, "time_ns": np.arange(count) + start_ns + 5}
        census = {
            **carried.census,
            "time_ns": np.full(len(carried.census["time_ns"]), start_ns + 1),
        }
        census["device"] = np.full(len(census["time_ns"]), self.device)
        kinds = [("recording_on", -1)]
        if self._worked:
            work = "module" if self._has_modules else "optimizer"
            kinds += [(f"{work}_enter", -1), (f"{work}_exit", -1)]
        if self._step:
            kinds.append(("step", self._step))
        at_ns = np.arange(len(kinds)) + start_ns
        if self._step:
            at_ns[-1] = start_ns + 4  # behind the census, which is none of this step's
        marks = {
            "time_ns": at_ns,
            "kind": np.array([_MARK[kind] for kind, _ in kinds]),
            "id": np.full(len(kinds), -1),
            "value": np.array([value for _, value in kinds]),
        }
        before = {"events": census, "tags": tags, "marks": marks}
        return {
            table: {
                name: np.concatenate([before[table][name].astype(column.dtype), column])
                for name, column in columns.items()
            }
            for table, columns in self._rows.items()
        }

    def cut_at(self, stretch: Stretch) -> int | None:
        """Where it may begin anew: nothing is open there, and what was before is decided."""
        marks = self._rows["marks"]
        begin_ns = -1 if self.begin_ns is None else self.begin_ns
        found = np.sort(marks["time_ns"][marks["kind"] == _MARK["step"]])
        found = found[found > begin_ns][: -1 - self._spare]
        if not len(found) and self.rows > MOST_ROWS:
            found = self._between_calls(stretch, begin_ns)
        on, off = (stretch.history.mark_times(f"recording_{state}") for state in ("on", "off"))
        recorded = np.searchsorted(on, found) == np.searchsorted(off, found) + 1
        found = found[recorded]
        return int(found[-1]) if len(found) else None

    def _between_calls(self, stretch: Stretch, begin_ns: int) -> Array:
        """Where a model is called from outside of everything, but for the last such calls."""
        marks, segments = self._rows["marks"], stretch.segments
        enters = np.sort(marks["time_ns"][marks["kind"] == _MARK["module_enter"]])
        enters = enters[enters > begin_ns]
        before = segments.scope[segments.at(enters - 1)] == int(Scope.NONE)
        outer: Array = enters[before]
        return outer[: len(outer) // (2 + self._spare)]

    def shorten(self, stretch: Stretch, cut_ns: int) -> None:
        """Begin at `cut_ns` from now on; `stretch` is what the window holds."""
        marks = self._rows["marks"]
        older = marks["time_ns"] < cut_ns
        self._has_modules |= bool(np.any(marks["kind"][older] == _MARK["module_enter"]))
        self._worked |= bool(np.any(np.isin(marks["kind"][older], _WORK)))
        before = int(stretch.segments.at(np.array([cut_ns - 1]))[0])
        self._step = int(stretch.segments.step[before])
        self._carried = stretch.keep(cut_ns)
        self.begin_ns = cut_ns
        self._rows = {
            table: {name: column[columns["time_ns"] >= cut_ns] for name, column in columns.items()}
            for table, columns in self._rows.items()
        }
