"""Keeps Ctrl-C, and whatever else a signal handler may raise, out of a stretch of our own work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

__all__ = ["held_back", "uninterrupted"]

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGINT")
    if hasattr(signal, name)
]
"""For which jobs have handlers that raise: to save a checkpoint, to give up after a while."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the handlers of signals that arrive inside run at the end; takes about 5 µs.

    Without it an exception could come between two lines of ours that belong together: what has been
    taken from the source is then lost, or half a batch on disk.
    """
    with held_back() as arrived:
        yield
    for number in arrived:
        signal.raise_signal(number)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Keep handlers from running inside; the numbers of the signals that arrive are for the caller."""
    arrived: list[int] = []
    # Not current_thread(): it would leave an entry for a thread of the autograd engine.
    if threading.get_ident() != threading.main_thread().ident:
        yield arrived  # handlers run on the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    with ExitStack() as undo:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                undo.callback(signal.signal, number, handler)
                signal.signal(number, note)
        yield arrived
