"""Texts that events, tags and marks refer to by number."""

from __future__ import annotations

from memlens.disk.format import codes
from memlens.events import NameKind

__all__ = ["Names"]

_KIND = codes(NameKind)


class Names:
    """Numbers texts as they turn up, and remembers which rows are not on disk yet."""

    def __init__(self) -> None:
        self._next = dict.fromkeys(NameKind, 0)
        self._known: dict[tuple[object, ...], int] = {}
        self.pending: list[tuple[int, int, int, str, str]] = []
        """Rows (kind, id, parent, text, detail) that no batch holds yet."""

    def new(self, kind: NameKind, text: str, detail: str = "") -> int:
        """Number something that is not identified by its text (two modules may share a name)."""
        number = self._next[kind]
        self._next[kind] = number + 1
        self.rename(kind, number, text, detail)
        return number

    def rename(self, kind: NameKind, number: int, text: str, detail: str = "") -> None:
        """Say better what a number stands for; readers use the last row."""
        self.pending.append((_KIND[kind.value], number, -1, text, detail))

    def intern(self, kind: NameKind, text: str, detail: str = "") -> int:
        """Number a text, the same one each time."""
        key = (kind, text, detail)
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = self.new(kind, text, detail)
        return number

    def frame(self, parent: int, function: str, file: str, line: int) -> int:
        """Number a stack frame under the frame that called it (-1 for the outermost)."""
        key = (parent, function, file, line)
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = self._next[NameKind.STACK]
            self._next[NameKind.STACK] = number + 1
            self.pending.append(
                (_KIND[NameKind.STACK.value], number, parent, function, f"{file}:{line}")
            )
        return number
