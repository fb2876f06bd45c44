"""Runs a command in a real pseudo-terminal, and reads the screen that a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.support.jobs import clean_environment

__all__ = ["Terminal"]

pyte = pytest.importorskip("pyte", reason="pyte, which understands terminals, is not installed")


class Terminal:
    """A command whose input, output and errors are a terminal of its own.

    Args:
        words: the command.
        cwd: where it runs.
        rows: of the terminal.
        columns: of the terminal.
        env: changes of its environment.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        rows: int = 24,
        columns: int = 100,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        """All that came to the terminal."""
        environment = clean_environment({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
        environment |= {"LANG": "C.UTF-8", **(env or {})}
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            os.execvpe(words[0], list(words), environment)
        self.resize(rows, columns)
        self._status: int | None = None

    def resize(self, rows: int, columns: int) -> None:
        """Another size, as when a window is dragged."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._fd, text.encode())

    def read(self, seconds: float) -> None:
        """Let the screen show what comes within a time, or until the command ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not select.select([self._fd], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # nobody has the terminal open any more
                return
            if not data:
                return
            self.written += data
            self._stream.feed(data)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until a text is on the screen or has scrolled off it."""
        deadline = time.monotonic() + seconds
        while text not in "\n".join(self.history() + self.lines()):
            assert time.monotonic() < deadline, f"no {text!r} on the screen:\n{self}"
            self.read(0.1)

    def lines(self) -> list[str]:
        """The screen."""
        return [line.rstrip() for line in self._screen.display]

    def history(self) -> list[str]:
        """What has scrolled off the screen."""
        columns = range(self._screen.columns)
        return [
            "".join(line[column].data for column in columns).rstrip()
            for line in self._screen.history.top
        ]

    def colours(self, row: int) -> set[str]:
        """Of the characters in a line."""
        return {char.fg for char in self._screen.buffer[row].values() if char.data != " "}

    @property
    def cursor(self) -> tuple[int, int]:
        """Line and column, from 0 on."""
        return self._screen.cursor.y, self._screen.cursor.x

    @property
    def margins(self) -> tuple[int, int] | None:
        """The scrolling region; None: the whole screen."""
        margins = self._screen.margins
        return None if margins is None else (margins.top, margins.bottom)

    def wait(self, seconds: float = 60) -> int:
        """Until the command has ended.

        Returns:
            Its exit code; less than 0: the signal that ended it.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.read(0.1)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it does not end:\n{self}")
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Give the terminal up."""
        self.read(3)
        os.close(self._fd)

    def __str__(self) -> str:
        """The screen."""
        return "\n".join(self.lines())
