"""Asks every rank of a run the same, on all cores where there is much to read.

Ranks share nothing, so each is read by itself and forgotten again. Large runs are read by processes of
their own (numpy holds Python's lock for most of it); a small one is read here, sooner than those start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Generic, TypeVar

from memlens.capture import Unreadable
from memlens.errors import CaptureError
from memlens.rank import RankCapture

__all__ = ["Asked", "ask_ranks"]

T = TypeVar("T")

FEW_BYTES = 6_000_000
"""Half a million events, read within two seconds; processes take half a second to start."""
MOST_PROCESSES = 16
"""Each needs some 100 MB, and more do not read faster from one disk."""
PER_CORE = 8
"""So many portions for each process, as ranks may differ in size."""


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What the ranks answered, in their order, and which of them could not."""

    answers: tuple[T, ...]
    unreadable: tuple[Unreadable, ...]


def ask_ranks(ranks: Sequence[RankCapture], question: Callable[[RankCapture], T]) -> Asked[T]:
    """Ask some ranks of a run the same.

    Args:
        ranks: which.
        question: a function of a module, or a `partial` of one: it may be asked in another process.

    Raises:
        CaptureError: none of them can be read.
    """
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES, len(ranks))
    is_large = len(ranks) > 1 and sum(rank.size_bytes_on_disk for rank in ranks) > FEW_BYTES
    answers: list[T | CaptureError] | None = None
    if is_large and processes > 1:
        answers = _ask_elsewhere(ranks, question, processes)
    if answers is None:
        answers = [_ask(question, is_large, rank) for rank in ranks]
    found: list[T] = []
    unreadable = []
    for rank, answer in zip(ranks, answers, strict=True):
        if isinstance(answer, CaptureError):
            unreadable.append(Unreadable(rank.rank, str(answer)))
        else:
            found.append(answer)
    if not found:
        raise CaptureError(unreadable[0].problem)
    return Asked(tuple(found), tuple(unreadable))


def _ask_elsewhere(
    ranks: Sequence[RankCapture], question: Callable[[RankCapture], T], processes: int
) -> list[T | CaptureError] | None:
    """None: processes can not be had, or one was killed."""
    try:
        # A fresh interpreter: a fork would inherit the locks of Arrow's and the engine's threads.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            portion = max(1, len(ranks) // (processes * PER_CORE))
            found: Iterator[T | CaptureError] = pool.map(
                partial(_ask, question, True), ranks, chunksize=portion
            )
            return list(found)
    except (BrokenProcessPool, OSError):
        return None


def _ask(
    question: Callable[[RankCapture], T], release: bool, rank: RankCapture
) -> T | CaptureError:
    try:
        return question(rank)
    except CaptureError as error:
        return error
    finally:
        if release:
            rank.release()
