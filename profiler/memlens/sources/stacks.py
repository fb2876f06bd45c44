"""Reads the Python stack of each allocation out of the profiler's tree of calls."""

from __future__ import annotations

from typing import Any

import torch

from memlens.names import Names

__all__ = ["StackReader"]


class _Call:
    """A call on the way from a root of the tree to an allocation."""

    __slots__ = ("depth", "fields", "parent", "stack")

    def __init__(self, parent: _Call | None, fields: Any) -> None:
        self.parent = parent
        self.fields = fields
        self.depth: int = parent.depth + 1 if parent else 1
        self.stack: int | None = None


class StackReader:
    """Numbers the stacks of one tree of calls.

    Args:
        names: where frames are numbered.
        depth: how many innermost frames to keep.
    """

    def __init__(self, names: Names, depth: int) -> None:
        self._names = names
        self._depth = depth
        self._allocation = torch._C._profiler._ExtraFields_Allocation
        self._python_call = torch._C._profiler._ExtraFields_PyCall

    def read(self, roots: list[Any]) -> tuple[list[int], list[Any], list[int]]:
        """Collect the allocations below `roots`.

        Returns:
            Times (ns), the profiler's allocation records and frame numbers, ordered by time.
        """
        found: list[tuple[int, Any, int]] = []
        allocation, python_call = self._allocation, self._python_call
        pending: list[tuple[list[Any], _Call | None]] = [(roots, None)]
        while pending:
            nodes, call = pending.pop()
            stack: int | None = None
            for node in nodes:
                children = node.children
                if children:
                    fields = node.extra_fields
                    if type(fields) is python_call:
                        pending.append((children, _Call(call, fields)))
                    else:
                        # A C function: what it allocates belongs to the line that called it.
                        pending.append((children, _c_call(call, fields)))
                    continue
                fields = node.extra_fields
                if type(fields) is allocation:
                    if stack is None:
                        stack = self._number(call)
                    found.append((node.start_time_ns, fields, stack))
        found.sort(key=_by_time)
        return [item[0] for item in found], [item[1] for item in found], [item[2] for item in found]

    def _number(self, call: _Call | None) -> int:
        if call is None:
            return -1
        if call.stack is None:
            call.stack = self._chain(call)
        return call.stack

    def _chain(self, call: _Call) -> int:
        # Frames are known by the call that left them: a call's `caller` is its parent's line. The
        # innermost frame's own line is known only if it was left through a C function.
        frames: list[tuple[str, str, int]] = []
        line: int | None = None
        walk: _Call | None = call
        while walk is not None and len(frames) < self._depth:
            if type(walk.fields) is self._python_call:
                site = walk.fields.callsite
                frames.append(
                    (site.function_name, site.file_name, site.line_number if line is None else line)
                )
            line = walk.fields.caller.line_number
            walk = walk.parent
        number = -1
        for function, file, at in reversed(frames):
            number = self._names.frame(number, function, file, at)
        return number


def _c_call(call: _Call | None, fields: Any) -> _Call | None:
    # Events other than Python and C calls (annotations of the job) have no caller.
    return _Call(call, fields) if hasattr(fields, "caller") else call


def _by_time(item: tuple[int, Any, int]) -> int:
    return item[0]
