"""Which rank of the job this process is."""

from __future__ import annotations

import multiprocessing
import os
import sys

__all__ = [
    "find_launch",
    "find_rank",
    "is_loader_worker",
    "is_multiprocessing_child",
    "uncaught_error",
]


def find_rank() -> tuple[int | None, int]:
    """Rank and world size: of the process group if there is one, else of the launcher.

    Returns:
        (rank, world size). The rank is None in a child process that has not said which it is; a
        process that nobody launched in particular is rank 0 of 1.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
    except (KeyError, ValueError):
        return (None if is_multiprocessing_child() else 0), 1


def find_launch() -> tuple[str | None, int]:
    """Which start of the job this is: torchrun's name for it, and how often it has started it again."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return os.environ.get("TORCHELASTIC_RUN_ID"), int(restart) if restart.isdecimal() else 0


def uncaught_error() -> BaseException | None:
    """What ends this process: the interpreter notes it before it calls exit handlers."""
    if hasattr(sys, "ps1"):  # somebody's prompt, which goes on after an error
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


def is_multiprocessing_child() -> bool:
    """Whether `multiprocessing` started this process (a DataLoader worker or a spawned rank)."""
    if multiprocessing.parent_process() is not None:
        return True
    # Not known yet while such a process imports the script that it was started from.
    return any(
        word == "--multiprocessing-fork" or "multiprocessing.forkserver" in word
        for word in sys.orig_argv
    )


def is_loader_worker() -> bool:
    """Whether this process loads data for another one."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None
