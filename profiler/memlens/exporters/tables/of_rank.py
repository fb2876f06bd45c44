"""Rows that describe one rank, made in portions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from memlens.analysis.frames import job_frame
from memlens.answers import Frame
from memlens.events import Category, Certainty, Phase
from memlens.exporters.rank_history import reserved_of
from memlens.exporters.tables.columns import TABLES
from memlens.exporters.tables.of_run import encodable

if TYPE_CHECKING:
    from memlens.rank import RankCapture

__all__ = ["RankTables", "Stacks"]

Array = npt.NDArray[Any]

TIMELINE_POINTS = 10_000
"""Enough for a picture of any width; said in the description of the table."""
_CATEGORIES = list(Category)
_PHASES = pa.array([each.value for each in Phase])


class Stacks:
    """Numbers the different stacks of a run."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Frame, ...], int] = {}
        self._new: list[tuple[Frame, ...]] = []

    def number(self, stack: tuple[Frame, ...]) -> int | None:
        """Of a stack; None: it was not recorded."""
        if not stack:
            return None
        if stack not in self._numbers:
            self._numbers[stack] = len(self._numbers)
            self._new.append(stack)
        return self._numbers[stack]

    def new_rows(self) -> pa.Table:
        """Rows of the stacks that have come since the last call."""
        first = len(self._numbers) - len(self._new)
        rows = [
            {
                "stack": number,
                "depth": depth,
                "function": encodable(frame.function),
                "file": encodable(frame.file),
                "line": frame.line,
            }
            for number, stack in enumerate(self._new, first)
            for depth, frame in enumerate(stack)
        ]
        self._new = []
        return pa.Table.from_pylist(rows, schema=TABLES["stacks"].schema)


class _Texts:
    """What numbers in a column stand for.

    Args:
        numbers: all that occur, ascending.
        texts: of each.
    """

    def __init__(self, numbers: Array, texts: list[Any], kind: pa.DataType | None = None) -> None:
        self._numbers = numbers
        self._texts = pa.array(texts, kind or pa.string())

    def of(self, column: Array) -> pa.Array:
        return self._texts.take(pa.array(np.searchsorted(self._numbers, column)))


class RankTables:
    """The rows of one rank and device.

    Args:
        rank: whose.
        first_block: number of its first block.
        stacks: of the run so far.

    Raises:
        CaptureError: the rank cannot be read.
    """

    def __init__(self, rank: RankCapture, first_block: int, stacks: Stacks) -> None:
        self._rank = rank
        self._first_block = first_block
        self._stacks = stacks
        self._blocks, self._found, self._segments = rank.blocks, rank.attribution, rank.segments
        self.block_count = len(self._blocks.first)
        time_ns = self._blocks.time_ns
        self._start_ns = int(time_ns[0]) if len(time_ns) else 0

    def rows(self, portion: int) -> Iterator[tuple[str, pa.Table]]:
        """Rows of all tables, each with the name of its table.

        Args:
            portion: how many rows of large tables at a time.
        """
        yield "ranks", self._rank_row()
        yield "steps", self._steps()
        yield "segments", self._stretches()
        yield "timeline", self._timeline()
        for rows in self._block_rows(portion):
            yield "blocks", rows
        yield "stacks", self._stacks.new_rows()
        for rows in self._part_rows(portion):
            yield "parts", rows

    def _key(self, count: int) -> dict[str, pa.Array]:
        rank = self._rank
        return {
            "rank": pa.repeat(pa.scalar(rank.rank, pa.int64()), count),
            "launch": pa.repeat(pa.scalar(rank.launch, pa.int64()), count),
            "device": pa.repeat(rank.device, count),
        }

    def _rank_row(self) -> pa.Table:
        rank, time_ns = self._rank, self._blocks.time_ns
        peak, coverage = rank.peak(), rank.coverage
        row = {
            "rank": rank.rank,
            "launch": rank.launch,
            "device": rank.device,
            "sharding": ", ".join(rank.sharding),
            "events": rank.events,
            "blocks": self.block_count,
            "first_event_ns": int(time_ns[0]) if len(time_ns) else None,
            "last_event_ns": rank.last_event_ns,
            "peak_bytes": peak.allocated_bytes,
            "peak_ns": peak.time_ns,
            "peak_event": int(np.argmax(self._blocks.running_bytes())) if len(time_ns) else None,
            "peak_step": peak.step,
            "peak_phase": peak.phase.value,
            "peak_module": encodable(peak.module),
            **_named("peak_{}_bytes", peak.categories),
            "reserved_bytes": peak.reserved_bytes,
            "reserved_peak_bytes": rank.reserved_peak_bytes,
            "complete": coverage.complete,
            "lost_events": coverage.lost_events,
            "blind_ns": coverage.blind_ns,
            "uncovered_bytes": coverage.uncovered_bytes,
            "witness_difference_bytes": coverage.witness_difference_bytes,
            "problems": encodable("\n".join(coverage.problems)),
        }
        return pa.Table.from_pylist([row], schema=TABLES["ranks"].schema)

    def _steps(self) -> pa.Table:
        rows = [
            {
                "rank": self._rank.rank,
                "launch": self._rank.launch,
                "device": self._rank.device,
                "step": step.step,
                "start_ns": step.start_ns,
                "end_ns": step.end_ns,
                "peak_ns": step.peak_ns,
                "peak_bytes": step.peak_bytes,
                "end_bytes": step.end_bytes,
                **_named("peak_{}_bytes", step.categories),
                **_named("end_{}_bytes", step.end_categories),
            }
            for step in self._rank.steps()
        ]
        return pa.Table.from_pylist(rows, schema=TABLES["steps"].schema)

    def _stretches(self) -> pa.Table:
        """Segments that last, equal neighbours as one."""
        segments = self._segments
        lasts = np.append(segments.start_ns[1:] > segments.start_ns[:-1], True)
        place = np.stack([segments.step, segments.phase, segments.module])[:, lasts]
        differs = np.append(True, np.any(place[:, 1:] != place[:, :-1], axis=0))
        start_ns, (step, phase, module) = segments.start_ns[lasts][differs], place[:, differs]
        numbers, example = np.unique(module, return_index=True)
        modules = _Texts(
            numbers,
            [encodable(self._rank.place_at(int(start_ns[each])).module) for each in example],
        )
        count = len(start_ns)
        return _table(
            "segments",
            {
                **self._key(count),
                "start_ns": pa.array(start_ns, mask=np.arange(count) == 0),
                "end_ns": pa.array(np.append(start_ns[1:], 0), mask=np.arange(count) == count - 1),
                "step": step,
                "phase": _PHASES.take(pa.array(phase)),
                "module": modules.of(module),
            },
        )

    def _timeline(self) -> pa.Table:
        timeline = self._rank.timeline(max_points=TIMELINE_POINTS)
        return _table(
            "timeline",
            {
                **self._key(len(timeline.time_ns)),
                "time_ns": timeline.time_ns,
                "elapsed_ns": timeline.time_ns - self._start_ns,
                "allocated_bytes": timeline.allocated_bytes,
                **_named("{}_bytes", timeline.categories),
                "reserved_bytes": self._reserved(timeline.time_ns),
            },
        )

    def _reserved(self, time_ns: Array) -> pa.Array:
        """What the allocator held at some times; no values where it takes nothing in advance."""
        found = reserved_of(self._rank)
        if found is None:
            return pa.nulls(len(time_ns), pa.int64())
        since_ns, size = found
        at = np.searchsorted(since_ns, time_ns, side="right")
        return pa.array(np.append(0, size)[at])

    def _block_rows(self, portion: int) -> Iterator[pa.Table]:
        rank, blocks, found = self._rank, self._blocks, self._found
        parts_bytes = np.zeros(self.block_count, np.int64)
        np.add.at(parts_bytes, found.parts.block, found.parts.size_bytes)
        names, modules, classes = self._names_and_modules()
        kinds, kind_key = self._weight_kinds(parts_bytes > 0)
        stack_numbers, example = np.unique(blocks.stack, return_index=True)
        by_stack = [rank.allocation(int(each)).stack for each in example]
        stacks = _Texts(stack_numbers, [self._stacks.number(each) for each in by_stack], pa.int64())
        sites = _Texts(stack_numbers, [_site(each) for each in by_stack])
        event_count = len(blocks.time_ns)
        categories = pa.array([each.value for each in Category])
        certainties = pa.array([each.value for each in Certainty])
        for begin in range(0, self.block_count, portion):
            here = slice(begin, min(begin + portion, self.block_count))
            count = here.stop - begin
            alloc_ns, free_ns, last = blocks.alloc_ns[here], blocks.free_ns[here], blocks.last[here]
            # One that recording lost sight of ends with what is recorded next, and has both.
            never = last >= event_count
            segment = found.segment[here]
            yield _table(
                "blocks",
                {
                    "block": np.arange(begin, here.stop) + self._first_block,
                    **self._key(count),
                    "alloc_ns": alloc_ns,
                    "free_ns": pa.array(free_ns, mask=never),
                    "alloc_elapsed_ns": alloc_ns - self._start_ns,
                    "free_elapsed_ns": pa.array(free_ns - self._start_ns, mask=never),
                    "alloc_event": blocks.first[here],
                    "free_event": pa.array(last, mask=never),
                    "address": blocks.address[here],
                    "size_bytes": blocks.size_bytes[here],
                    "requested_bytes": blocks.requested_bytes[here],
                    "parts_bytes": parts_bytes[here],
                    "category": categories.take(pa.array(found.category[here])),
                    "certainty": certainties.take(pa.array(found.certainty[here])),
                    "weight_kind": kinds.of(kind_key[here]),
                    "name": names.of(found.name[here]),
                    "module": modules.of(found.module[here]),
                    "module_class": classes.of(found.module[here]),
                    "step": self._segments.step[segment],
                    "phase": _PHASES.take(pa.array(self._segments.phase[segment])),
                    "preexisting": blocks.preexisting[here],
                    "site": sites.of(blocks.stack[here]),
                    "stack": stacks.of(blocks.stack[here]),
                },
            )

    def _names_and_modules(self) -> tuple[_Texts, _Texts, _Texts]:
        """Names of blocks, their modules, and the classes of these; asked of one block each."""
        rank, found = self._rank, self._found
        names, example = np.unique(found.name, return_index=True)
        name_texts = [encodable(rank.allocation(int(each)).name) for each in example]
        modules, example = np.unique(found.module, return_index=True)
        owned = [rank.allocation(int(each)) for each in example]
        return (
            _Texts(names, name_texts),
            _Texts(modules, [encodable(each.module) for each in owned]),
            _Texts(modules, [encodable(each.module_class) for each in owned]),
        )

    def _weight_kinds(self, is_shared: Array) -> tuple[_Texts, Array]:
        """Kinds of weights, and the column to look them up by.

        Weights of one name are of one kind; one that several tensors share is looked up by itself.
        """
        found = self._found
        none = np.iinfo(np.int64).min
        key = np.where(is_shared, -2 - np.arange(self.block_count), found.name.astype(np.int64))
        key[found.category != _CATEGORIES.index(Category.WEIGHT)] = none
        numbers, example = np.unique(key, return_index=True)
        kinds = (self._rank.allocation(int(each)).weight_kind for each in example)
        return _Texts(numbers, [kind and kind.value for kind in kinds]), key

    def _part_rows(self, portion: int) -> Iterator[pa.Table]:
        parts, found = self._found.parts, self._found
        if not len(parts.block):
            return
        begins = np.append(True, parts.block[1:] != parts.block[:-1])
        first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
        names, modules = self._part_texts()
        owner, _ = self._names_and_modules()[1:]
        for begin in range(0, len(parts.block), portion):
            here = slice(begin, min(begin + portion, len(parts.block)))
            holder = owner.of(found.module[parts.block[here]])
            is_owned = pa.array(parts.module[here] >= 0)
            yield _table(
                "parts",
                {
                    "block": parts.block[here] + self._first_block,
                    "part": np.arange(begin, here.stop) - first[here],
                    "offset_bytes": parts.offset_bytes[here],
                    "size_bytes": parts.size_bytes[here],
                    "name": names.of(parts.name[here]),
                    "module": pa.compute.if_else(is_owned, modules.of(parts.module[here]), holder),
                },
            )

    def _part_texts(self) -> tuple[_Texts, _Texts]:
        """Names of parts, and their modules: of as few blocks as have them all."""
        parts = self._found.parts
        names, name_at = np.unique(parts.name, return_index=True)
        modules, module_at = np.unique(parts.module, return_index=True)
        name_texts: dict[int, str] = {}
        module_texts: dict[int, str] = {}
        for block in np.unique(parts.block[np.append(name_at, module_at)]).tolist():
            told = self._rank.allocation(block).parts
            for at, part in zip(parts.of(block), told, strict=True):
                name_texts[int(parts.name[at])] = encodable(part.name)
                module_texts[int(parts.module[at])] = encodable(part.module)
        return (
            _Texts(names, [name_texts[each] for each in names.tolist()]),
            _Texts(modules, [module_texts[each] for each in modules.tolist()]),
        )


def _named(pattern: str, categories: Mapping[Category, Any]) -> dict[str, Any]:
    return {pattern.format(each.value): categories[each] for each in Category}


def _site(stack: tuple[Frame, ...]) -> str:
    frame = job_frame(stack)
    return "" if frame is None else encodable(f"{frame.file}:{frame.line} {frame.function}")


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = TABLES[name].schema
    arrays = [
        (each if isinstance(each, pa.Array) else pa.array(each)).cast(field.type)
        for field in schema
        for each in (columns[field.name],)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
