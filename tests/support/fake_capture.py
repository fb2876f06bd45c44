"""A Capture made from plain blocks, for testing what reads captures without recording one.

Everything is worked out by brute force from the list of blocks, so its answers agree with each
other for the same reason that a real capture's do, and not because a test typed them twice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from memlens.answers import (
    Allocation,
    Coverage,
    Frame,
    Gauge,
    Growth,
    ModuleUsage,
    Part,
    Peak,
    Place,
    RunInfo,
    Slack,
    Step,
    Timeline,
)
from memlens.events import Category, Certainty, Phase, WeightKind

if TYPE_CHECKING:
    from memlens.capture import Capture, Unreadable

START_NS = 1_750_000_000_000_000_000
"""When fakes begin: a real-looking time, so that nothing passes by being near zero."""

COMPLETE = Coverage(
    complete=True,
    lost_events=0,
    blind_ns=0,
    uncovered_bytes=0,
    witness_difference_bytes=0,
    problems=(),
)


@dataclass(frozen=True)
class Block:
    """One allocation; times count from START_NS."""

    size_bytes: int
    category: Category
    alloc_ns: int
    free_ns: int | None = None
    name: str = ""
    module: str = ""
    phase: Phase = Phase.INIT
    certainty: Certainty = Certainty.DECLARED
    stack: tuple[Frame, ...] = ()
    weight_kind: WeightKind = WeightKind.TRAINABLE
    """Of a weight."""
    parts: tuple[Part, ...] = ()


@dataclass
class FakeRank:
    """A RankCapture over `blocks`; `step_ends` are the times at which steps 0, 1, ... end."""

    rank: int
    blocks: list[Block]
    step_ends: list[int] = field(default_factory=list)
    device: str = "cpu"
    coverage: Coverage = COMPLETE
    suspects: tuple[Growth, ...] = ()
    class_names: dict[str, str] = field(default_factory=dict)
    reserved_bytes: int | None = None
    measured: tuple[Gauge, ...] = ()
    launch: int = 0
    sharding: tuple[str, ...] = ()
    header: dict[str, Any] = field(default_factory=lambda: {"closed": True})
    size_bytes_on_disk = 0

    def __post_init__(self) -> None:
        changes: list[tuple[int, int, Block]] = []
        for block in self.blocks:
            changes.append((block.alloc_ns, 1, block))
            if block.free_ns is not None:
                changes.append((block.free_ns, -1, block))
        # At one time, frees come first: what is freed and allocated at t is never alive together.
        self._changes = sorted(changes, key=lambda change: (change[0], change[1]))

    @property
    def events(self) -> int:
        return len(self._changes)

    @property
    def reserved_peak_bytes(self) -> int | None:
        return self.reserved_bytes

    def slack_at(self, time_ns: int | None = None) -> Slack | None:
        if self.reserved_bytes is None:
            return None
        return Slack(self.reserved_bytes, 0, self.reserved_bytes - self.peak().allocated_bytes)

    out_of_memory = ()

    @property
    def last_event_ns(self) -> int | None:
        return START_NS + self._changes[-1][0] if self._changes else None

    def release(self) -> None:
        pass

    def place_at(self, time_ns: int) -> Place:
        return Place(self._step_of(time_ns - START_NS), Phase.FORWARD, "")

    def gauges(self) -> tuple[Gauge, ...]:
        return self.measured

    def timeline(self, max_points: int | None = None) -> Timeline:
        times = [START_NS + when for when, _, _ in self._changes]
        rows = np.zeros((len(times), len(Category)), dtype=np.int64)
        order = list(Category)
        for row, (_, sign, block) in enumerate(self._changes):
            rows[row, order.index(block.category)] = sign * block.size_bytes
        rows = rows.cumsum(axis=0)
        starts = [0, *self.step_ends]
        return Timeline(
            time_ns=np.array(times, dtype=np.int64),
            allocated_bytes=rows.sum(axis=1),
            categories={category: rows[:, at] for at, category in enumerate(order)},
            step_start_ns={step: START_NS + when for step, when in enumerate(starts[:-1])},
        )

    def categories_at(self, time_ns: int) -> dict[Category, int]:
        found = dict.fromkeys(Category, 0)
        for block in self._alive(time_ns):
            found[block.category] += block.size_bytes
        return found

    def weights_at(self, time_ns: int | None = None) -> dict[WeightKind, int]:
        found = dict.fromkeys(WeightKind, 0)
        for block in self._alive(time_ns):
            if block.category is Category.WEIGHT:
                found[block.weight_kind] += block.size_bytes
        return found

    def peak(self) -> Peak:
        timeline = self.timeline()
        if not self._changes:
            return Peak(
                START_NS, 0, Phase.INIT, "", 0, self.reserved_bytes, dict.fromkeys(Category, 0)
            )
        at = int(timeline.allocated_bytes.argmax())
        when, _, block = self._changes[at]
        return Peak(
            time_ns=START_NS + when,
            step=self._step_of(when),
            phase=block.phase,
            module=block.module,
            allocated_bytes=int(timeline.allocated_bytes[at]),
            reserved_bytes=self.reserved_bytes,
            categories={key: int(row[at]) for key, row in timeline.categories.items()},
        )

    def steps(self) -> tuple[Step, ...]:
        found = []
        for number, end in enumerate(self.step_ends):
            start = self.step_ends[number - 1] if number else 0
            times = [start, *(when for when, _, _ in self._changes if start <= when < end)]
            totals = [(sum(self.categories_at(START_NS + when).values()), when) for when in times]
            peak_bytes = max(total for total, _ in totals)
            peak_ns = START_NS + next(when for total, when in totals if total == peak_bytes)
            end_categories = self.categories_at(START_NS + end)
            found.append(
                Step(
                    step=number,
                    start_ns=START_NS + start,
                    end_ns=START_NS + end,
                    peak_ns=peak_ns,
                    peak_bytes=peak_bytes,
                    end_bytes=sum(end_categories.values()),
                    categories=self.categories_at(peak_ns),
                    end_categories=end_categories,
                )
            )
        return tuple(found)

    def allocations_at(
        self, time_ns: int | None = None, top: int | None = 20
    ) -> tuple[Allocation, ...]:
        alive = sorted(self._alive(time_ns), key=lambda block: -block.size_bytes)
        return tuple(
            Allocation(
                address=0x7F00_0000_0000 + 64 * self.blocks.index(block),
                size_bytes=block.size_bytes,
                category=block.category,
                certainty=block.certainty,
                name=block.name,
                module=block.module,
                phase=block.phase,
                step=self._step_of(block.alloc_ns),
                alloc_ns=START_NS + block.alloc_ns,
                free_ns=None if block.free_ns is None else START_NS + block.free_ns,
                preexisting=False,
                stack=block.stack,
                weight_kind=block.weight_kind if block.category is Category.WEIGHT else None,
                parts=block.parts,
                module_class=self.class_names.get(block.module, ""),
            )
            for block in alive[:top]
        )

    def modules_at(
        self, time_ns: int | None = None, top: int | None = 20
    ) -> tuple[ModuleUsage, ...]:
        held: dict[str, dict[Category, int]] = defaultdict(lambda: defaultdict(int))
        for block in self._alive(time_ns):
            held[block.module][block.category] += block.size_bytes
        usages = [
            ModuleUsage(module, self.class_names.get(module, ""), sum(parts.values()), dict(parts))
            for module, parts in held.items()
        ]
        return tuple(sorted(usages, key=lambda usage: -usage.total_bytes)[:top])

    def growth(self, top: int = 10) -> tuple[Growth, ...]:
        return self.suspects[:top]

    def _alive(self, time_ns: int | None) -> list[Block]:
        when = (self.peak().time_ns if time_ns is None else time_ns) - START_NS
        return [
            block
            for block in self.blocks
            if block.alloc_ns <= when and (block.free_ns is None or block.free_ns > when)
        ]

    def _step_of(self, when: int) -> int:
        return sum(end <= when for end in self.step_ends)


@dataclass
class FakeCapture:
    """A Capture over fake ranks."""

    info: RunInfo
    ranks: tuple[FakeRank, ...]
    problems: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    launches: int = 1
    is_whole: bool = True


def make_capture(
    *ranks: FakeRank,
    name: str = "20250615-142640-train",
    command: tuple[str, ...] = ("train.py", "--lr", "3e-4"),
    source: str = "cpu",
    problems: tuple[str, ...] = (),
) -> Capture:
    """A Capture of these ranks."""
    info = RunInfo(
        path=f"memlens-runs/{name}",
        name=name,
        format_version=1,
        source=source,
        world_size=len({rank.rank for rank in ranks}),
        command=command,
        created_ns=START_NS,
        torch_version="2.13.0+cpu",
        memlens_version="0.1.0",
    )
    return cast("Capture", FakeCapture(info, ranks, problems))
