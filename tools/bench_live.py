"""What looking on costs: `memlens run --live` and scalars for loggers, beside recording alone.

    python tools/bench_live.py            about eight minutes
    python tools/bench_live.py --quick    fewer rounds

A job records itself all the time. In turns of two seconds, nobody looks on; a process looks on and draws
in a terminal, as `memlens run --live` has it; scalars are taken after every step, or after every tenth. A
ratio compares with recording alone in the same round; the median over rounds is printed. Where other work
is going on, the share of one processor that the process which looks on took is the better figure.
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
from signal import SIGCONT, SIGSTOP

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
def looking_on(run: Path, shares: list[float]) -> Iterator[subprocess.Popen[str]]:
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
        yield looker
    finally:
        sleeper.kill()
        sleeper.wait()
        if (
            share := looker.stdout.readline()
        ):  # else it was cut off, ten seconds after the job's end
            shares.append(float(share))
        looker.wait()
        drawn.join()
        os.close(ours)


def _swallow(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 65536):
            pass


WAYS = {"alone": 0, "run --live": 0, "scalars, every step": 1, "scalars, every 10 steps": 10}
"""With after how many steps each takes scalars; 0: never."""


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

    times: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with memlens.profile(out=out), looking_on(out, shares) as looker:
            for _ in range(3):  # what comes once: the census, the first look
                run()
            memlens.scalars()
            time.sleep(2)
            for number in range(rounds):
                order = list(WAYS)[number % 4 :] + list(WAYS)[: number % 4]
                for way in order:
                    memlens.scalars()  # no backlog of another's
                    looker.send_signal(SIGCONT if way == "run --live" else SIGSTOP)
                    times[way].append(timed(WAYS[way]))
            looker.send_signal(SIGCONT)
    base = times["alone"]
    print(f"  {statistics.median(base) * 1e3:.1f} ms a step, recorded, one thread")
    for way in list(WAYS)[1:]:
        ratios = sorted(mine / each for mine, each in zip(times[way], base, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        middle = statistics.median(ratios)
        print(f"  {way:<24} {middle:6.3f} x  (half of the rounds: {low:.3f} to {high:.3f})")
    took = f"took {shares[0]:.2%} of a processor" if shares else "was cut off at the end"
    print(f"  who looks on {took}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    rounds = 8 if options.quick else 32
    for name, job in (("language model", language_model), ("tiny", tiny)):
        print(f"\nlooking on, {name}")
        measure(job, 2.0, rounds)


if __name__ == "__main__":
    main()
