"""What a simulation cannot know, and where in the job that was: errors and notes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import memlens
from memlens.errors import SimulationError

__all__ = ["Notes", "job_line", "refuse"]

_LIBRARIES = tuple(
    str(Path(module.__file__).parent) + os.sep for module in (torch, memlens) if module.__file__
)


def job_line() -> str:
    """`train.py:43`: the innermost line that is the job's own, or a library's where none is.

    Empty where all is ours: in a built-in job.
    """
    frame: Any = sys._getframe(1)
    first = ""
    while frame is not None:
        file = frame.f_code.co_filename
        is_ours = file.startswith(_LIBRARIES) or _module(frame).startswith("memlens_integrations")
        if not is_ours and not file.startswith("<"):
            line = f"{_short(file)}:{frame.f_lineno}"
            if f"{os.sep}site-packages{os.sep}" not in file:
                return line if not first else f"{line} (in {first})"
            first = first or line
        frame = frame.f_back
    return first


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _short(file: str) -> str:
    _, found, rest = file.rpartition(f"{os.sep}site-packages{os.sep}")
    if found:
        return rest
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


class Notes:
    """Sentences about what was not done as the job has it, each with the first line that asked for it."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        """What it was, and where it was first."""
        self.error = ""
        """What ended the simulation, in one line; empty: nothing."""
        self.on_error: Callable[[], None] = lambda: None
        """Called when there is one: within backward, an exception may end the process at once."""

    def add(self, what: str) -> None:
        """Note something; only its first place is kept."""
        if what not in self.texts:
            self.texts[what] = job_line()

    def sentences(self) -> list[str]:
        """All, in the order in which they came."""
        return [f"{what} ({where})" if where else what for what, where in self.texts.items()]


def refuse(notes: Notes, operation: str, why: str, way_out: str) -> SimulationError:
    """An error that names an operation, its line in the job, and the way out."""
    line = job_line()
    error = f"{operation}{' at ' if line else ''}{line}: {why}; {way_out}"
    if not notes.error:
        notes.error = error
        notes.on_error()
    return SimulationError(error)
