"""The loop of the process that looks on: follow, show, and rest long enough."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from rich.console import Console

from memlens.report.ink import Ink
from memlens.watching.beside import Job, end_soon
from memlens.watching.picture import draw
from memlens.watching.ranks import Ranks, RankView
from memlens.watching.screen import Screen
from memlens.watching.status import status_line

__all__ = ["look", "watch"]

SHARE = 0.01
"""Of a processor's time that looking on may take, for each rank that there is a processor for."""
BURST_S = 0.3
"""Of it that may be taken in advance: the beginning costs more, and is when somebody looks."""
LEAST_S = 0.5
"""Shortest rest between two looks: recording writes about twice a second."""
STATUS_S = 30.0
"""Between two lines, where there is no terminal."""

LEAST_COLUMNS = 40
"""Of a terminal, or nothing is drawn."""


class _Output(Protocol):
    def show(self, views: list[RankView]) -> None: ...

    def end(self, views: list[RankView]) -> None: ...


def look(run: Path, job: Job) -> None:
    """Show what the ranks of a run on this host hold, until the job has ended.

    Args:
        run: its folder.
        job: the process that is the job.
    """
    _follow(Ranks(run), job.ends_within, end_soon)


def watch(run: Path) -> None:
    """Show what the ranks of a run that somebody else has started hold, until all have ended.

    Args:
        run: its folder; may be on a file system that several hosts share.
    """
    ranks = Ranks(run, everywhere=True)

    def has_ended(seconds: float) -> bool:
        if ranks.have_ended():
            return True
        time.sleep(seconds)
        return False

    _follow(ranks, has_ended, lambda: None)
    if _is_terminal() and (line := status_line(ranks.views())) is not None:
        print(line, file=sys.stderr)


def _follow(ranks: Ranks, ends_within: Callable[[float], bool], at_end: Callable[[], None]) -> None:
    output: _Output = _Terminal() if _is_terminal() else _Log()
    try:
        began_s, spent_before_s = time.monotonic(), time.process_time()
        rest_s = LEAST_S
        while not ends_within(rest_s):
            ranks.poll()
            output.show(ranks.views())
            share = SHARE * max(1, min(len(ranks), (os.cpu_count() or 2) // 2))
            spent_s = time.process_time() - spent_before_s - BURST_S
            rest_s = max(LEAST_S, began_s + spent_s / share - time.monotonic())
        at_end()
        ranks.poll()
    finally:
        with suppress(OSError):
            output.end(ranks.views())


def _is_terminal() -> bool:
    # Process 1 takes all others along when it ends: nobody would put its terminal in order.
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" and os.getpgrp() != 1


class _Terminal:
    """The lower lines of the terminal that stderr is."""

    def __init__(self) -> None:
        self._screen = Screen(2)
        console = Console(stderr=True)
        self._ink = Ink.of(console)
        self._colours = console.color_system if self._ink.colour else None
        signal.signal(signal.SIGTSTP, self._stop)

    def show(self, views: list[RankView]) -> None:
        if not views:
            return
        width = self._screen.size().columns
        if width < LEAST_COLUMNS or not self._screen.is_ours():
            self._screen.clear()
            return
        lines = draw(views, self._ink, width)
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system=self._colours,  # type: ignore[arg-type]  # one of its own
            no_color=self._colours is None,
            width=width,
            legacy_windows=False,
        )
        with console.capture() as capture:
            for line in lines:
                console.print(line, no_wrap=True, crop=True, highlight=False, soft_wrap=False)
        self._screen.show(capture.get().splitlines())

    def end(self, _: list[RankView]) -> None:
        self._screen.clear()

    def _stop(self, *_: object) -> None:
        """Ctrl-Z: the shell gets a terminal in good order."""
        with suppress(OSError):
            self._screen.clear()
        os.kill(os.getpid(), signal.SIGSTOP)


class _Log:
    """A line when the first step has ended, then now and then, and one at the end."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._last: str | None = None

    def show(self, views: list[RankView]) -> None:
        if time.monotonic() >= self._next_s and self._say(views):
            self._next_s = time.monotonic() + STATUS_S

    def end(self, views: list[RankView]) -> None:
        self._say(views)

    def _say(self, views: list[RankView]) -> bool:
        line = status_line(views)
        if line is None or line == self._last:
            return False
        self._last = line
        os.write(2, f"{line}\n".encode(errors="replace"))
        return True
