"""Collects what source and observers see, and hands it to the writer in batches.

On the hot path nothing is looked up or decided: observers append tuples to lists. Everything else
happens in `drain`, about twice a second.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from memlens.disk.format import codes
from memlens.disk.headers import PARTIAL
from memlens.disk.writer import RankWriter, make_batch
from memlens.events import Category, Certainty, MarkKind, NameKind
from memlens.recording.columns import (
    census_columns,
    census_free_columns,
    device_column,
    event_columns,
)
from memlens.recording.held import Held, Holder, Sink
from memlens.recording.mark_clock import MarkClock
from memlens.recording.names import Names
from memlens.recording.storages import storages
from memlens.recording.uninterrupted import uninterrupted
from memlens.sources.base import Block, EventBatch, Gauge, Source

__all__ = ["Recorder"]

_CATEGORY = codes(Category)
_CERTAINTY = codes(Certainty)
_MARK = codes(MarkKind)
_DECLARED = _CERTAINTY["declared"]

DRAIN_NS = 400_000_000
"""Longest time between drains, so that a kill loses less than a second."""
DRAIN_EVENTS = 16_000
"""Drain earlier when the last rate would give more: bounds the memory that a batch takes."""
MIN_DRAIN_NS = 10_000_000
GAUGE_NS = 1_000_000_000
MOST_HELD_ROWS = 200_000
"""Kept in memory while it is not known whether this process is a rank; then it is recorded anyway."""


class Recorder:
    """One rank's events, tags, marks and names on their way to disk.

    Args:
        source: what tells of allocations.
        names: the texts that the source and the observers number.
        held: keeps what comes before there is a folder; None keeps everything.
    """

    def __init__(self, source: Source, names: Names, held: Holder | None = None) -> None:
        self.source = source
        self.names = names
        self.active = False
        """Observers work; the source may still be waiting for the first step asked for."""
        self.recording = False
        """The source records."""
        self.trains = False
        """A module was called, a backward ran or an optimizer was made."""
        self.backward = 0
        """Number of the backward that this thread is in; 0 outside."""
        self.paused = 0
        """Above 0 inside the autograd engine, where not every source can be drained or stopped."""
        self.thread = threading.get_ident()
        self._engine_threads: set[int] = set()
        self.problems: list[str] = []
        self.events = 0
        self.on_fault: Callable[[], None] = lambda: None
        self.on_evidence: Callable[[bool], None] | None = None
        """Called when this process turns out to train a model, until there is a file to write to;
        its argument says whether that is certain."""
        self.gauges: list[Callable[[], Iterable[Gauge]]] = []
        """Asked about once a second for memory that no allocator tells of."""
        self.holdings: list[Callable[[], Iterable[Any]]] = []
        """Asked what the objects of a library hold (`memlens.adapters.Holding`)."""
        self.hold: Callable[[Any], None] = lambda _: None
        """Has one holding noted: what a library has just made, or will free before stock is taken."""
        self.take_stock: Callable[[], None] = lambda: None
        """Has every adapter say what its library holds right now."""
        self.enter_step: Callable[[str], None] = lambda _: None
        """An optimizer that is none of torch's begins to step; its text. Optimizers of torch's that step
        within are a part of it, also if each does so several times."""
        self.leave_step: Callable[[bool], None] = lambda _: None
        """It has stepped, or failed to; whether that counts (not so if it was for the state alone)."""
        self.watch_gradient: Callable[[torch.Tensor], None] = lambda _: None
        """Has the gradient of a parameter tagged as soon as it is there: it will not be for long."""
        self._gauge_ns = 0
        self._marks: list[tuple[int, int, int, int]] = []
        self._marks_before = 0
        """How many marks earlier batches hold: the first one in the list has this number."""
        self._clock = MarkClock() if source.annotate is not None else None
        self._tags: list[tuple[int, int, int, int, int, int, int, int, int]] = []
        self._held: Holder = held or Held(MOST_HELD_ROWS)
        self._writer: RankWriter | None = None
        self.lost_events = 0
        self.next_drain_ns = 0
        self._last_drain_ns = 0
        self._on_ns = 0
        self._busy = False
        self._complained = False

    # -- what observers call -------------------------------------------------------------------

    def hook(self, observer: str, function: Callable[..., None]) -> Callable[..., None]:
        """Wrap an observer's function so that no fault of it can reach the job.

        The result does nothing while the session is not active, on other threads, and where
        torch.compile traces it; it returns None, which every hook of torch takes for "unchanged".
        """

        def call(*args: Any) -> None:
            if torch.compiler.is_compiling():
                return
            if self.active and self.is_ours():
                try:
                    function(*args)
                except Exception as error:
                    self.fail(observer, error)

        return call

    def begin_backward(self, number: int) -> None:
        """The session's thread calls the engine."""
        self._engine_threads.clear()  # numbers of threads that have ended are given out again
        self.backward = number

    def is_ours(self) -> bool:
        """Whether this thread works for the session: its own, and the engine's within its backward.

        On a GPU the autograd engine runs on threads of its own, while the one that called it waits.
        """
        thread = threading.get_ident()
        if thread == self.thread:
            return True
        if not self.backward:
            return False
        if thread not in self._engine_threads:
            if any(
                thread == each.ident and type(each).__name__ != "_DummyThread"
                for each in threading.enumerate()
            ):
                return False  # Python started it: the job's own
            self._engine_threads.add(thread)
        return True

    def mark(self, kind: MarkKind, number: int = -1, value: int = 0) -> None:
        """Note that the job did something, now."""
        now = time_ns()
        if self._clock is None:
            self._marks.append((now, _MARK[kind.value], number, value))
        else:
            # A heartbeat may write marks away between any two lines; the sum stays the same.
            ordinal = self._marks_before + len(self._marks)
            self._marks.append((now, _MARK[kind.value], number, value))
            self._clock.note(ordinal, now, threading.get_ident())
            if self.source.annotate is not None:
                self.source.annotate(ordinal)
        if now >= self.next_drain_ns:
            self.breathe(now)

    def tag_address(
        self,
        address: int,
        size_bytes: int,
        category: int,
        name: int,
        module: int,
        device: int,
        offset_bytes: int,
    ) -> None:
        """Note what the storage at an address is for (a plain tensor's; the fast way)."""
        self._tags.append(
            (
                time_ns(),
                device,
                address,
                size_bytes,
                category,
                _DECLARED,
                name,
                module,
                offset_bytes,
            )
        )

    def tag(
        self,
        tensor: torch.Tensor,
        category: Category,
        name: int,
        *,
        module: int = -1,
        certainty: Certainty = Certainty.DECLARED,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Note what a tensor's storage is for, from its allocation until its free.

        Args:
            tensor: what was seen.
            category: what it is.
            name: number of its name.
            module: number of the module that owns it, or -1.
            certainty: how that is known.
            part: where in the tensor that lies which is spoken of, and its size, in bytes; None: all.
        """
        now, what, sure = time_ns(), _CATEGORY[category.value], _CERTAINTY[certainty.value]
        device_type = self.source.device_type
        for device, address, size_bytes, offset in storages(tensor, device_type):
            if part is not None:
                offset, size_bytes = offset + part[0], part[1]
            self._tags.append((now, device, address, size_bytes, what, sure, name, module, offset))

    def evidence(self, *, certain: bool = True) -> None:
        """This process trains a model, so it is a rank; or, less certain, it has made one."""
        if self.trains:
            return
        if self.on_evidence is not None:
            self.on_evidence(certain)
        if certain:
            self.trains = True
            self.update_header(trains=True)

    def fail(self, observer: str, error: BaseException) -> None:
        """A fault of ours: say so once, and let the training go on without us."""
        if not self.active:
            return
        self.active = False
        self.complain(
            f"{observer} failed ({type(error).__name__}: {error}); "
            f"recording stopped there and {PARTIAL}",
            "; the training goes on",
        )
        with suppress(Exception):
            self.on_fault()

    def complain(self, text: str, addition: str = "") -> None:
        """Keep a problem, and tell the person at the terminal of the first one."""
        self.problem(text)
        if not self._complained:
            self._complained = True
            with suppress(OSError, ValueError):  # nobody is listening
                print(f"memlens: {' '.join(text.split())}{addition}", file=sys.stderr)

    def problem(self, text: str) -> None:
        """Keep a sentence about what the capture lacks."""
        text = " ".join(text.split())
        if text not in self.problems:
            self.problems.append(text)
            with suppress(OSError):  # the disk may be the problem
                self.update_header(problems=self.problems)

    # -- recording -----------------------------------------------------------------------------

    def start_source(self) -> None:
        """Let the source record from here on."""
        if self.recording:
            return
        now = time_ns()
        self.source.start()
        self.recording = True
        self._on_ns = self._last_drain_ns = now
        self.next_drain_ns = now + DRAIN_NS
        self._marks.append((now, _MARK["recording_on"], -1, 0))

    def stop_source(self) -> None:
        """Let the source record no more, and keep what it has."""
        if not self.recording:
            return
        with uninterrupted():
            self.recording = False
            try:
                batch = self.source.stop()
            except BaseException:
                self.source.abandon()  # it must not go on recording into nowhere
                raise
            self._gauge_ns = 0  # gauges tell of the end, too, however short the recording was
            self._store(batch)  # first: it may tell of a loss, after which recording began anew
            self._marks.append((time_ns(), _MARK["recording_off"], -1, 0))

    def breathe(self, now: int) -> None:
        """Drain, if this is a moment at which the source can be drained."""
        if not self.recording:
            self.next_drain_ns = now + DRAIN_NS
        elif not self._busy and self.can_drain:
            self.drain()

    @property
    def can_drain(self) -> bool:
        """Whether the source can be drained or stopped now."""
        return not self.paused or self.source.drains_anywhere

    def drain(self) -> None:
        """Take what the source has and write everything there is."""
        with uninterrupted(), self._at_work():
            try:
                self._store(self.source.drain())
                if self._held.is_full and self.on_evidence is not None:
                    self.on_evidence(True)
            except Exception as error:
                self.fail(f"the {self.source.name} source", error)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """No heartbeat drains in between: half of a batch may be on its way."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def add_census(self, blocks: list[Block]) -> None:
        """Add what was there when the source began to record."""
        with self._at_work():
            self._emit_events(census_columns(blocks, self._on_ns))

    def _store(self, batch: EventBatch) -> None:
        count = len(batch.time_ns)
        now = time_ns()
        if count and batch.mark is not None and self._clock is not None:
            batch.time_ns = self._clock.correct(
                np.asarray(batch.time_ns, np.int64), batch.mark, device_column(batch)
            )
        if batch.header:
            self.update_header(**batch.header)
        if batch.lost_events or batch.census:
            self._begin_anew(batch, now)
        if count:
            last = int(max(batch.time_ns))
            for device, total in batch.allocator_total_bytes.items():
                self._marks.append((last, _MARK["allocator_total"], device, total))
        for what, device_name, value in [*batch.gauges, *self._measure(now)]:
            number = self.names.intern(NameKind.SCOPE, what, device_name)
            self._marks.append((now, _MARK["gauge"], number, value))
        self._emit_rows("names", self.names.pending)
        self._emit_marks()
        self._emit_rows("tags", self._tags)
        if batch.census:
            self._emit_events(census_columns(batch.census, self._on_ns))
        if count:
            self._emit_events(event_columns(batch))
        if batch.census_frees:
            self._emit_events(census_free_columns(batch.census_frees))
        # Aim at DRAIN_EVENTS per batch, at the rate of this one.
        elapsed = max(now - self._last_drain_ns, 1)
        interval = DRAIN_NS if not count else elapsed * DRAIN_EVENTS // count
        self._last_drain_ns = now
        self.next_drain_ns = now + max(MIN_DRAIN_NS, min(DRAIN_NS, interval))

    def _measure(self, now: int) -> list[Gauge]:
        if not self.gauges or now - self._gauge_ns < GAUGE_NS:
            return []
        self._gauge_ns = now
        found: list[Gauge] = []
        for ask in list(self.gauges):
            try:
                found += ask()
            except Exception as error:
                self.gauges.remove(ask)
                self.problem(f"a gauge failed ({type(error).__name__}: {error})")
        return found

    def _begin_anew(self, batch: EventBatch, now: int) -> None:
        """The source has missed something: the capture is blind until its new census."""
        self.lost_events += batch.lost_events
        start = int(batch.time_ns[0]) if len(batch.time_ns) else now
        self._marks.append((self._last_drain_ns, _MARK["recording_off"], -1, 0))
        self._on_ns = max(start - 1, self._last_drain_ns + 1)
        self._marks.append((self._on_ns, _MARK["recording_on"], -1, 0))
        with suppress(OSError):
            self.update_header(lost_events=self.lost_events)

    def _emit_marks(self) -> None:
        count = len(self._marks)
        if count:
            self._emit("marks", make_batch("marks", list(zip(*self._marks[:count], strict=True))))
            self._marks_before += count
            del self._marks[:count]

    def _emit_events(self, columns: list[Any]) -> None:
        count = len(columns[0])
        if count:
            self._emit("events", make_batch("events", columns))
            self.events += count

    def _emit_rows(self, table: str, rows: list[Any]) -> None:
        if rows:
            count = len(rows)
            self._emit(table, make_batch(table, list(zip(*rows[:count], strict=True))))
            # Emptied in place: a heartbeat may come while somebody is about to append to this list.
            del rows[:count]

    def _emit(self, table: str, batch: pa.RecordBatch) -> None:
        sink: Sink = self._held if self._writer is None else self._writer
        sink.write(table, batch)

    # -- disk ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the rank's folder is there."""
        return self._writer is not None

    @property
    def folder(self) -> Path | None:
        """The rank's folder, once it is there."""
        return None if self._writer is None else self._writer.folder

    @property
    def is_busy(self) -> bool:
        """Whether a drain is under way, on whichever thread."""
        return self._busy

    def open(self, writer: RankWriter) -> None:
        """Write to `writer` from here on, and first what was held back so far."""
        with self._at_work():
            self._writer = writer
            self.on_evidence = None
            self._held.release(writer)

    def update_header(self, **changes: Any) -> None:
        """Change what the rank's header says."""
        if self._writer is not None:
            self._writer.update(**changes)

    def close(self) -> None:
        """Write the rest and end the streams."""
        try:
            self._store(EventBatch())
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close(
                    problems=self.problems,
                    notes=self.source.notes,
                    events=self.events,
                    lost_events=self.lost_events,
                    **self.source.header(),
                    ended_ns=time_ns(),
                )

    def abandon(self) -> None:
        """Forget everything, in a forked child: the files belong to the parent."""
        self.active = self.recording = False
        self._marks, self._tags, self._held = [], [], Held(0)
        # Dropping the writer would end the parent's streams, so it is kept for good.
        _ORPHANS.append(self._writer)
        self._writer = None


_ORPHANS: list[RankWriter | None] = []
