"""Turns marks into segments: between two marks, the job does one thing."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import FOREVER
from memlens.disk.format import codes
from memlens.disk.reader import NameTables
from memlens.events import Category, MarkKind, Phase

__all__ = ["Scope", "Segments", "segment"]

Array = npt.NDArray[Any]

_KIND = codes(MarkKind)
PHASES = list(Phase)
_CATEGORIES = codes(Category)


class Scope(IntEnum):
    """What surrounds a moment, innermost first; never on disk."""

    NONE = 0
    """Nothing: between steps, or before the first."""
    MODULE = 1
    """A module's forward."""
    LOSS = 2
    """After a model's forward, before the backward that uses its result."""
    BACKWARD = 3
    RECOMPUTE = 4
    """A module's forward within backward (activation checkpointing)."""
    OPTIMIZER = 5
    LIBRARY = 6
    """A library's own work; what outlives it has a category of its own."""


@dataclass(frozen=True)
class Segments:
    """Parallel arrays, one entry per segment; the first begins at the beginning of time."""

    start_ns: Array
    phase: Array
    """Position in Phase."""
    module: Array
    """Number of the module at work, or -1."""
    step: Array
    scope: Array
    scope_end_ns: Array
    """When the scope ends; FOREVER if it never did."""
    survivor: Array
    """Category (position) of what outlives a LIBRARY scope."""
    temporary: Array
    """Category (position) of what is freed within it."""
    label: Array
    """Number of the tensor's name for what a LIBRARY scope allocates, or -1."""
    next_forward_ns: Array
    """When the next forward (or backward) from outside of any scope begins; FOREVER if none does."""
    step_start_ns: dict[int, int]
    trained: set[int]
    """Steps in which something ran backward or an optimizer stepped."""

    def at(self, time_ns: Array) -> Array:
        """Segment of each time."""
        return np.maximum(np.searchsorted(self.start_ns, time_ns, side="right") - 1, 0)


class _Frame:
    """Something that is open. What lies on top of it ends with it, so all of this stays as it is.

    Args:
        kind: what was opened.
        number: its mark's id.
        kept: categories of what outlives it, and of what does not, for a library's work.
        under: what was open already.
    """

    __slots__ = (
        "backward",
        "kind",
        "module",
        "number",
        "owner",
        "phase",
        "scope",
        "segments",
        "survivor",
        "temporary",
    )

    def __init__(
        self, kind: Scope, number: int, kept: tuple[int, int], under: _Frame | None
    ) -> None:
        self.kind = kind
        self.number = number
        self.survivor, self.temporary = kept
        self.segments: list[int] = []
        self.module: int = number if kind is Scope.MODULE else under.module if under else -1
        self.backward: _Frame | None = under.backward if under else None
        """The outermost run of the engine."""
        if self.backward is None and kind is Scope.BACKWARD:
            self.backward = self
        recomputes = kind is Scope.MODULE and self.backward is not None
        self.scope = int(Scope.RECOMPUTE if recomputes else kind)
        self.owner = self
        """With whose end its segments end: nested runs of the engine hand on their gradients."""
        if kind is Scope.BACKWARD and self.backward is not None:
            self.owner = self.backward
        self.phase: int = under.phase if under else _UNDECIDED
        if self.backward is not None:
            self.phase = _BACKWARD
        elif kind is Scope.MODULE:
            self.phase = _FORWARD
        elif kind is Scope.OPTIMIZER and self.phase != _FORWARD:
            self.phase = _OPTIMIZER


_INIT, _FORWARD, _BACKWARD, _OPTIMIZER, _OTHER = range(len(PHASES))
_UNDECIDED = -1
"""Phase of a library's work on its own: whatever it interrupts."""

_OPENS = {
    _KIND["module_enter"]: Scope.MODULE,
    _KIND["backward_enter"]: Scope.BACKWARD,
    _KIND["optimizer_enter"]: Scope.OPTIMIZER,
    _KIND["scope_enter"]: Scope.LIBRARY,
}
_CLOSES = {
    _KIND["module_exit"]: Scope.MODULE,
    _KIND["backward_exit"]: Scope.BACKWARD,
    _KIND["optimizer_exit"]: Scope.OPTIMIZER,
    _KIND["scope_exit"]: Scope.LIBRARY,
}
_FLOW, _STEP = _KIND["backward_module"], _KIND["step"]
_CHUNK = 1 << 16
_USED = [*_OPENS, *_CLOSES, _FLOW, _STEP]


def _is_outermost(stack: list[_Frame]) -> bool:
    """Whether what is called here is called by the job itself, or by its closure for an optimizer."""
    return not stack or (len(stack) == 1 and stack[0].kind is Scope.OPTIMIZER)


def _find(stack: list[_Frame], kind: Scope, number: int) -> int:
    """Position of the innermost open scope that an end belongs to; the stack's length for none."""
    for position in range(len(stack) - 1, -1, -1):
        frame = stack[position]
        if frame.kind is kind and (kind is Scope.BACKWARD or frame.number == number):
            return position
    return len(stack)


def _kept(detail: str) -> tuple[int, int]:
    """Categories of what outlives a library's scope, and of what does not: `communication/temporary`."""
    survivor, _, temporary = detail.partition("/")
    return (
        _CATEGORIES.get(survivor, _CATEGORIES["unknown"]),
        _CATEGORIES.get(temporary, _CATEGORIES["temporary"]),
    )


def _rows(*columns: Array) -> Iterator[tuple[int, ...]]:
    """Rows of columns, as plain numbers; not all at a time."""
    for start in range(0, len(columns[0]), _CHUNK):
        yield from zip(*(each[start : start + _CHUNK].tolist() for each in columns), strict=True)


def segment(marks: dict[str, Array], names: NameTables) -> Segments:
    """Walk through the marks once, keeping a stack of what is open.

    A scope whose end is missing (an exception, a kill) ends with the scope around it.
    """
    order = np.argsort(marks["time_ns"], kind="stable")
    order = order[np.isin(marks["kind"][order], _USED)]
    mark_ns, mark_kind, mark_value = (marks[name][order] for name in ("time_ns", "kind", "value"))
    has_modules = bool(np.any(mark_kind == _KIND["module_enter"]))
    survivors = {number: _kept(detail) for number, (_, detail) in names.scope.items()}
    texts = {text: number for number, text in names.tensor.items()}
    labels = {number: texts.get(text, -1) for number, (text, _) in names.scope.items()}

    # One segment before the first mark, and one after each.
    count = len(order) + 1
    # Arrays of plain numbers, which take a tenth of what lists of objects do; those of numpy are slow
    # to set one by one.
    phase, scope = array("b", [_INIT]) * count, array("b", [Scope.NONE]) * count
    survivor, temporary = array("b", [0]) * count, array("b", [0]) * count
    module, label = array("i", [-1]) * count, array("i", [-1]) * count
    end = array("q", [FOREVER]) * count
    stack: list[_Frame] = []
    current_step, seen_work = 0, False
    step_start: dict[int, int] = {}
    trained: set[int] = set()
    outer_starts: list[int] = []
    # Segments whose scope depends on what comes next.
    undecided: list[int] = [] if has_modules else [0]
    needs_gradient = not has_modules

    def close(position: int, at: int) -> None:
        for frame in stack[position:]:
            for index in frame.segments:
                end[index] = at
        del stack[position:]

    for index, (time, kind, number, value) in enumerate(
        _rows(mark_ns, mark_kind, marks["id"][order], mark_value),
        1,
    ):
        if (opened := _OPENS.get(kind)) is not None:
            if _is_outermost(stack):
                if opened is Scope.MODULE or opened is Scope.BACKWARD:
                    outer_starts.append(time)
                    for earlier in undecided:
                        if needs_gradient:
                            scope[earlier], phase[earlier] = int(Scope.LOSS), _FORWARD
                        if needs_gradient or not stack:
                            end[earlier] = time
                    if needs_gradient and stack:
                        taken = set(undecided)
                        stack[0].segments = [i for i in stack[0].segments if i not in taken]
                elif opened is Scope.OPTIMIZER:
                    needs_gradient = False
                undecided = []
            if opened is Scope.BACKWARD or opened is Scope.OPTIMIZER:
                trained.add(current_step)
            seen_work = seen_work or opened is not Scope.LIBRARY
            stack.append(
                _Frame(opened, number, survivors.get(number, (0, 0)), stack[-1] if stack else None)
            )
        elif (closing := _CLOSES.get(kind)) is not None:
            close(_find(stack, closing, number), time)
            if _is_outermost(stack):
                if closing is Scope.MODULE:
                    needs_gradient = bool(value)
                elif closing is not Scope.LIBRARY:
                    needs_gradient = not has_modules and not stack
                if closing is Scope.OPTIMIZER:
                    undecided = []
        elif kind == _FLOW:
            if stack and stack[-1].kind is Scope.BACKWARD:
                stack[-1].module = number
        else:
            current_step = value
            step_start[value] = time
            close(0, time)  # what was left open by an exception that the job survived
            needs_gradient = not has_modules
            undecided = []

        if stack:
            top = stack[-1]
            top.owner.segments.append(index)
            scope[index], module[index] = top.scope, top.module
            survivor[index], temporary[index] = top.survivor, top.temporary
            if top.kind is Scope.LIBRARY:
                label[index] = labels.get(top.number, -1)
            phase[index] = top.phase
            if len(stack) == 1 and top.kind is Scope.OPTIMIZER:
                undecided.append(index)
        else:
            phase[index] = _UNDECIDED
            undecided.append(index)
        if phase[index] == _UNDECIDED:
            phase[index] = _OTHER if seen_work else _INIT

    start_ns = np.append(np.iinfo(np.int64).min, mark_ns)
    is_step = mark_kind == _STEP
    steps = np.append(0, mark_value[is_step])
    outer = np.array([*outer_starts, FOREVER], np.int64)
    ends = np.append(mark_ns, FOREVER)
    return Segments(
        start_ns=start_ns,
        phase=np.frombuffer(phase, np.int8),
        module=np.frombuffer(module, np.int32),
        step=steps[np.append(np.int32(0), np.cumsum(is_step, dtype=np.int32))],
        scope=np.frombuffer(scope, np.int8),
        scope_end_ns=np.frombuffer(end, np.int64),
        survivor=np.frombuffer(survivor, np.int8),
        temporary=np.frombuffer(temporary, np.int8),
        label=np.frombuffer(label, np.int32),
        next_forward_ns=outer[np.searchsorted(outer, ends, side="left")],
        step_start_ns=step_start,
        trained=trained,
    )
