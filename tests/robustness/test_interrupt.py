"""Ctrl-C, and other signals whose handlers raise: never between two lines that belong together."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from tests.support.jobs import STEPS, ours, start_memlens, write_script

import memlens
from memlens.recording.uninterrupted import uninterrupted


class Raised(Exception):
    """By a handler of the job."""


@pytest.fixture
def handlers() -> Iterator[dict[int, object]]:
    """Handlers that raise, as jobs have them; the test's own are put back."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Raised(number)

    numbers = (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)
    before = {number: signal.signal(number, handler) for number in numbers}
    yield dict.fromkeys(map(int, numbers), handler)
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1])
def test_a_handler_runs_when_we_are_done(number: int, handlers: dict[int, object]) -> None:
    done = False
    with pytest.raises(Raised, match=str(int(number))), uninterrupted():
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # the handler would run here
        done = True
    assert done
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_ctrl_c_comes_when_we_are_done() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is before


def test_within_each_other(handlers: dict[int, object]) -> None:
    order = []
    with pytest.raises(Raised), uninterrupted():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGUSR1)
            order.append("inner")
        order.append("outer")
    assert order == ["inner", "outer"]
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_an_exception_of_ours_goes_through_and_puts_all_back(handlers: dict[int, object]) -> None:
    with pytest.raises(ValueError, match="ours"), uninterrupted():
        raise ValueError("ours")
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_signals_that_are_ignored_or_deadly_stay_so() -> None:
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_on_another_thread_nothing_is_touched(handlers: dict[int, object]) -> None:
    seen = []

    def work() -> None:
        with uninterrupted():
            seen.append({n: signal.getsignal(n) for n in handlers})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handlers]


def interrupt_many(folder: Path, lives_s: list[float]) -> None:
    write_script(folder / "train.py", STEPS + "print('ready', flush=True)\nwhile True: train(1)")

    def interrupt(item: tuple[int, float]) -> None:
        run = folder / f"run-{item[0]}"
        process = start_memlens("run", "--out", str(run), "train.py", cwd=folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(item[1])
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT, stderr
        [line] = ours(stderr)
        [rank] = memlens.load(run).ranks
        # Nothing at all is missing: what was taken from the source has reached the disk.
        assert rank.coverage.complete, (rank.coverage, stderr)
        assert line.startswith(f"memlens: recorded {rank.events:,} events")
        assert rank.events > 100

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(interrupt, enumerate(lives_s)))


def test_a_few_interruptions_of_a_job_that_only_dispatches(tmp_path: Path) -> None:
    interrupt_many(tmp_path, [0.1, 0.35, 0.6, 0.85])


@pytest.mark.slow
def test_many_interruptions_of_a_job_that_only_dispatches(tmp_path: Path) -> None:
    chance = random.Random(7)
    interrupt_many(tmp_path, [chance.uniform(0, 1) for _ in range(24)])
