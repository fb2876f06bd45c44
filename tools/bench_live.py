"""What looking on costs: `memlens run --live` and scalars for loggers, beside recording alone.

    python tools/bench_live.py            about three minutes
    python tools/bench_live.py --quick    fewer rounds

A job records itself all the time. In turns, nobody looks on; a process looks on and draws in a terminal,
as `memlens run --live` has it; a logger takes scalars after every step, or after every tenth. A ratio
compares with recording alone in the same round; the median over rounds is printed, and the share of one
processor that the process which looks on took, which is what it is held to.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import Step, language_model, tiny

_LOOK = """
import os, sys, time
from pathlib import Path
from memlens.watching.beside import Job
from memlens.watching.look import look
os.nice(19)
spent, began = time.process_time(), time.monotonic()
print("ready", flush=True)
look(Path(sys.argv[1]), Job(int(sys.argv[2])))
print((time.process_time() - spent) / (time.monotonic() - began), flush=True)
"""
"""Its modules are loaded before it begins, as they are where `memlens run` forks it."""


@contextlib.contextmanager
def looking_on(run: Path, shares: list[float]) -> Iterator[None]:
    """A process looks on, in a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    sleeper = subprocess.Popen(["sleep", "3600"])
    looker = subprocess.Popen(
        [sys.executable, "-c", _LOOK, str(run), str(sleeper.pid)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    drawn = threading.Thread(target=_swallow, args=(ours,), daemon=True)
    drawn.start()
    assert looker.stdout is not None
    assert looker.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        sleeper.kill()
        sleeper.wait()
        shares.append(float(looker.stdout.readline()))
        looker.wait()
        drawn.join()
        os.close(ours)


def _swallow(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 65536):
            pass


WAYS = ("alone", "run --live", "scalars, every step", "scalars, every 10 steps")
EVERY = {"scalars, every step": 1, "scalars, every 10 steps": 10}


def _in_session(timed: Callable[[int], float], run: Step, way: str, shares: list[float]) -> float:
    """Seconds of a step in a run of its own, which is looked at from its beginning."""
    import memlens

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out = Path(folder) / "run"
        stack.enter_context(memlens.profile(out=out))
        if way == "run --live":
            stack.enter_context(looking_on(out, shares))
        for _ in range(3):  # what comes once: the census, the first look
            run()
        memlens.scalars()
        return timed(EVERY.get(way, 0))


def measure(job: Callable[[], Step], seconds: float, rounds: int) -> None:
    import torch

    import memlens

    torch.set_num_threads(1)
    run = job()
    run()

    def timed(every: int) -> float:
        """Seconds of a step; scalars are taken after every so many."""
        count = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            run()
            count += 1
            if every and count % every == 0:
                memlens.scalars()
        return (time.perf_counter() - began) / count

    ratios: dict[str, list[float]] = {}
    shares: list[float] = []
    alone: list[float] = []
    for _ in range(rounds):
        found = {way: _in_session(timed, run, way, shares) for way in WAYS}
        base = (found["alone"] + _in_session(timed, run, "alone", shares)) / 2
        alone.append(base)
        for way in WAYS[1:]:
            ratios.setdefault(way, []).append(found[way] / base)
    print(f"  {statistics.median(alone) * 1e3:.1f} ms a step, recorded, one thread")
    for way, found in ratios.items():
        print(
            f"  {way:<24} {statistics.median(found):6.3f} x  ({min(found):.3f} to {max(found):.3f})"
        )
    print(f"  whoever looks on took {statistics.median(shares):.2%} of a processor", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    rounds, seconds = (3, 4.0) if options.quick else (5, 6.0)
    for name, job in (("language model", language_model), ("tiny", tiny)):
        print(f"\nlooking on, {name}")
        measure(job, seconds, rounds)


if __name__ == "__main__":
    main()
