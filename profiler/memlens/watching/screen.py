"""The lower lines of a terminal, while another process writes to the upper ones.

The terminal itself keeps the two apart: its scrolling region ends above our lines. So what the job writes
goes to the terminal as it is, line by line, progress bars and colours included, and scrolls as ever. Each
time, all of our bytes go in one write, with the cursor put back where the job left it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["Screen"]

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_WHOLE = "\x1b[r"
_DOWN = "\x1bD"
"""One line down, scrolling at the end; unlike a line feed, it stays in the column."""
LEAST_ROWS = 6
"""So many lines are left to the job, or nothing is drawn."""


class Screen:
    """Draws on a terminal.

    Args:
        fd: the terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._height = 0
        self._size: os.terminal_size | None = None

    def size(self) -> os.terminal_size:
        """Columns and lines."""
        return os.get_terminal_size(self._fd)

    def is_ours(self) -> bool:
        """Whether the job is in the terminal's foreground: else a shell is, or another job."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # not the terminal that controls this process
            return True

    def show(self, lines: Sequence[str]) -> None:
        """Put these lines at the bottom; each is at most as wide as the terminal."""
        size = self.size()
        height = len(lines)
        if size.lines < height + LEAST_ROWS:
            self.clear()
            return
        out = []
        if self._size != size:
            out.append(self._cleared())
            self._height, self._size = 0, size
        if height != self._height:
            out.append(self._make_room(height, size.lines))
            self._height = height
        out.append(_SAVE)
        for number, line in enumerate(lines):
            out.append(f"\x1b[{size.lines - height + 1 + number};1H\x1b[0m\x1b[2K{line}\x1b[0m")
        out.append(_RESTORE)
        self._write("".join(out))

    def _make_room(self, height: int, rows: int) -> str:
        more = height - self._height
        # Where the cursor is low, what the job has written moves up.
        out = f"{_DOWN * more}\x1b[{more}A" if more > 0 else self._erased(rows)
        return f"{out}{_SAVE}\x1b[1;{rows - height}r{_RESTORE}"

    def _erased(self, rows: int) -> str:
        lines = (f"\x1b[{rows - number};1H\x1b[2K" for number in range(self._height))
        return f"{_SAVE}\x1b[0m{''.join(lines)}{_RESTORE}"

    def _cleared(self) -> str:
        if not self._height or self._size is None:
            return ""
        return f"{self._erased(self._size.lines)}{_SAVE}{_WHOLE}{_RESTORE}"

    def clear(self) -> None:
        """Give the whole terminal back; the cursor stays where it is."""
        out = self._cleared()
        self._height, self._size = 0, None
        if out:
            self._write(out)

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._fd, data) :]
