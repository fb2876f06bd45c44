"""Turns marks into segments: between two marks, the job does one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from memlens.attribution.lifetimes import FOREVER
from memlens.events import Category, MarkKind, Phase
from memlens.format import codes
from memlens.reader import NameTables

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
    next_forward_ns: Array
    """When the next forward (or backward) from outside of any scope begins; FOREVER if none does."""
    step_start_ns: dict[int, int]
    trained: set[int]
    """Steps in which something ran backward or an optimizer stepped."""

    def at(self, time_ns: Array) -> Array:
        """Segment of each time."""
        return np.maximum(np.searchsorted(self.start_ns, time_ns, side="right") - 1, 0)


class _Frame:
    __slots__ = ("kind", "module", "number", "segments", "survivor")

    def __init__(self, kind: Scope, number: int, module: int, survivor: int) -> None:
        self.kind = kind
        self.number = number
        self.module = module
        self.survivor = survivor
        self.segments: list[int] = []


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


def _is_outermost(stack: list[_Frame]) -> bool:
    """Whether what is called here is called by the job itself, or by its closure for an optimizer."""
    return not stack or (len(stack) == 1 and stack[0].kind is Scope.OPTIMIZER)


def segment(marks: dict[str, Array], names: NameTables) -> Segments:
    """Walk through the marks once, keeping a stack of what is open.

    A scope whose end is missing (an exception, a kill) ends with the scope around it.
    """
    order = np.argsort(marks["time_ns"], kind="stable")
    times = marks["time_ns"][order].tolist()
    kinds = marks["kind"][order].tolist()
    numbers = marks["id"][order].tolist()
    values = marks["value"][order].tolist()
    has_modules = bool(np.any(marks["kind"] == _KIND["module_enter"]))
    survivors = {
        number: _CATEGORIES.get(detail, _CATEGORIES["unknown"])
        for number, (_, detail) in names.scope.items()
    }

    start = [np.iinfo(np.int64).min]
    phase, module, step, scope, survivor = [0], [-1], [0], [0], [0]
    end = [FOREVER]
    stack: list[_Frame] = []
    current_step, seen_work = 0, False
    step_start: dict[int, int] = {}
    trained: set[int] = set()
    outer_starts: list[int] = []
    # Segments whose scope depends on what comes next.
    undecided: list[int] = [] if has_modules else [0]
    needs_gradient = not has_modules

    init, forward, backward, optimizer, other = range(len(PHASES))

    def close(frame: _Frame, at: int) -> None:
        for index in frame.segments:
            end[index] = at

    for time, kind, number, value in zip(times, kinds, numbers, values, strict=True):
        opened = _OPENS.get(kind)
        if opened is not None:
            if _is_outermost(stack):
                if opened in (Scope.MODULE, Scope.BACKWARD):
                    outer_starts.append(time)
                    for index in undecided:
                        if needs_gradient:
                            scope[index], phase[index] = int(Scope.LOSS), forward
                        if needs_gradient or not stack:
                            end[index] = time
                    if needs_gradient and stack:
                        taken = set(undecided)
                        stack[0].segments = [i for i in stack[0].segments if i not in taken]
                elif opened is Scope.OPTIMIZER:
                    needs_gradient = False
                undecided = []
            if opened is Scope.BACKWARD or opened is Scope.OPTIMIZER:
                trained.add(current_step)
            seen_work = seen_work or opened is not Scope.LIBRARY
            inner = number if opened is Scope.MODULE else stack[-1].module if stack else -1
            stack.append(_Frame(opened, number, inner, survivors.get(number, 0)))
        elif kind in _CLOSES:
            closing = _CLOSES[kind]
            matches = [
                i
                for i in range(len(stack) - 1, -1, -1)
                if stack[i].kind is closing
                and (closing is Scope.BACKWARD or stack[i].number == number)
            ][:1]
            for position in matches:
                for frame in stack[position:]:
                    close(frame, time)
                del stack[position:]
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
        elif kind == _STEP:
            current_step = value
            step_start[value] = time
            if stack:  # left open by an exception that the job survived
                for frame in stack:
                    close(frame, time)
                stack.clear()
            needs_gradient = not has_modules
            undecided = []
        else:
            continue

        index = len(start)
        start.append(time)
        step.append(current_step)
        end.append(FOREVER)
        if not stack:
            scope.append(int(Scope.NONE))
            phase.append(other if seen_work else init)
            module.append(-1)
            survivor.append(0)
            undecided.append(index)
            continue
        top = stack[-1]
        in_backward = next((f for f in stack if f.kind is Scope.BACKWARD), None)
        kind_here = top.kind
        if kind_here is Scope.MODULE and in_backward is not None:
            kind_here = Scope.RECOMPUTE
        owner = top
        if kind_here is Scope.BACKWARD and in_backward is not None:
            owner = in_backward  # the outermost run: nested ones hand their gradients to it
        owner.segments.append(index)
        if _is_outermost(stack):
            undecided.append(index)
        scope.append(int(kind_here))
        survivor.append(top.survivor)
        module.append(top.module)
        if in_backward is not None:
            phase.append(backward)
        elif any(f.kind is Scope.MODULE for f in stack):
            phase.append(forward)
        elif any(f.kind is Scope.OPTIMIZER for f in stack):
            phase.append(optimizer)
        else:
            phase.append(other if seen_work else init)

    start_array = np.array(start, np.int64)
    outer = np.array([*outer_starts, FOREVER], np.int64)
    ends = np.append(start_array[1:], FOREVER)
    return Segments(
        start_ns=start_array,
        phase=np.array(phase, np.int8),
        module=np.array(module, np.int32),
        step=np.array(step, np.int64),
        scope=np.array(scope, np.int8),
        scope_end_ns=np.array(end, np.int64),
        survivor=np.array(survivor, np.int8),
        next_forward_ns=outer[np.searchsorted(outer, ends, side="left")],
        step_start_ns=step_start,
        trained=trained,
    )
