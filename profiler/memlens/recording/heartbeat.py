"""Drains the source also when the job calls no module and no optimizer for a while.

A thread can not read another thread's profiler. It asks the interpreter to run a function on the
main thread between two bytecodes (a pending call, as the interpreter's own signal handling uses).
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from time import time_ns

from memlens.recording.recorder import Recorder
from memlens.recording.uninterrupted import held_back

__all__ = ["Heartbeat"]

_PERIOD_S = 0.1

_current: Heartbeat | None = None


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _pending(_: object) -> int:
    # Lives as long as the process: a call may still be pending when its session has ended.
    heartbeat = _current
    if heartbeat is not None:
        with held_back() as arrived:
            try:
                heartbeat.beat()
            except (
                Exception
            ) as error:  # the interpreter would raise it wherever the job happens to be
                heartbeat.recorder.fail("heartbeat", error)
        # What a handler raises in here would be lost, and the job's Ctrl-C with it: they run later.
        heartbeat.arrived += arrived
    return 0


class Heartbeat:
    """Calls `Recorder.breathe` on the main thread when it is due and nobody else has."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.each_beat: list[Callable[[], None]] = []
        """Called on the heartbeat's own thread, also while the main one waits outside of Python."""
        self.arrived: list[int] = []
        """Signals that came while a pending call was at work; the thread sends them once more."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memlens-heartbeat", daemon=True)

    def install(self, undo: ExitStack) -> None:
        """Start beating, if the session is on the main thread (pending calls run only there)."""
        global _current
        if self.recorder.thread != threading.main_thread().ident:
            return
        _current = self
        self._thread.start()
        undo.callback(self._end)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._send_again()
            for call in self.each_beat:
                call()
            if time_ns() >= self.recorder.next_drain_ns:
                ctypes.pythonapi.Py_AddPendingCall(_pending, None)
        self._send_again()

    def _send_again(self) -> None:
        main = threading.main_thread().ident
        while self.arrived and main is not None:
            signal.pthread_kill(main, self.arrived.pop(0))

    def beat(self) -> None:
        """Drain, unless observers have just done so."""
        recorder = self.recorder
        if recorder.active:
            now = time_ns()
            if now >= recorder.next_drain_ns:
                recorder.breathe(now)

    def _end(self) -> None:
        global _current
        _current = None
        # Not in a forked child: the thread is not there, and may have held the event's lock.
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
