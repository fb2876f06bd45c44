"""A process beside the job that looks on.

The job stays the process that was started (`memlens.launch.command.become`): its pid, signals, exit code,
input and output are its own. The one that looks on is no child of it, which the job might wait for; it
ignores what is meant for the job, draws on stderr alone, and ends when the job has ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Job", "end_soon", "is_running", "look_on"]

_NICENESS = 19
"""Where every core is busy, it gets some 1.5 % of one; where one is idle, what it needs."""
_FALLBACK_S = 0.2
_MOST_S_AFTER = 10
"""It ends so long after the job at the latest, whatever it waits for: somebody may wait for the pipe."""


class Job:
    """The process that is looked at.

    Args:
        pid: of a process that is there.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd: int | None = None
        if hasattr(os, "pidfd_open"):
            try:
                self._fd = os.pidfd_open(pid)
            except OSError:  # an old kernel
                self._fd = None

    def fileno(self) -> int:
        """Of what tells of its end; -1: nothing does."""
        return -1 if self._fd is None else self._fd

    def ends_within(self, seconds: float) -> bool:
        """Wait until it has ended, or for so long."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            if self._fd is not None:
                if select.select([self._fd], [], [], left)[0]:
                    return True
            elif not is_running(self._pid):
                return True
            else:
                time.sleep(min(left, _FALLBACK_S))
            if time.monotonic() >= deadline:
                return False


def is_running(pid: int) -> bool:
    """Whether there is such a process on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def look_on(run: Path, look: Callable[[Path, Job], None]) -> None:
    """Have a process of its own call `look`; this one is about to become the job.

    Nothing that goes wrong keeps the job from running.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        job = Job(os.getpid())
        child = os.fork()
    except OSError as error:
        print(f"memlens: no live view: {error}", file=sys.stderr)
        return
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:  # so that it is nobody's child here
            _stand_aside(job)
            look(run, job)
    except BaseException as error:
        if os.environ.get("MEMLENS_DEBUG") == "1":
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        os.write(2, f"memlens: the live view has ended: {text[:200]}\n".encode(errors="replace"))
    finally:
        os._exit(0)


def _stand_aside(job: Job) -> None:
    """Be no obstacle to the job: not by signals, files that are held open, or time."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    kept = {2, job.fileno()}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue
    os.nice(_NICENESS)


def end_soon() -> None:
    """The job has ended: whatever happens, so does this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_MOST_S_AFTER)
