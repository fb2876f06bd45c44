"""Everything memlens raises on purpose.

    MemlensError                 base; `exit_code` is what the command line exits with
    ├── UsageError               the request cannot be carried out as written (2)
    │   ├── SessionActiveError   a session is already recording in this process
    │   └── OutputExistsError    the output folder is already there
    ├── CaptureError             a run folder cannot be read: not ours, damaged, other version (2)
    ├── MissingDependencyError   an optional package is needed; the text names the install line (2)
    ├── SourceError              this machine or process cannot record what was asked (1)
    └── SimulationError          the job's memory cannot be told without data (1)

Each text says what happened, why, and the way out. The command line prints it in one line.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "MemlensError",
    "MissingDependencyError",
    "OutputExistsError",
    "SessionActiveError",
    "SimulationError",
    "SourceError",
    "UsageError",
]


class MemlensError(Exception):
    """Base of all errors that memlens raises on purpose."""

    exit_code = 1


class UsageError(MemlensError):
    """The request cannot be carried out as written."""

    exit_code = 2


class SessionActiveError(UsageError):
    """A session is already recording in this process; there can be one at a time."""


class OutputExistsError(UsageError):
    """The output folder is already there; a capture is never overwritten."""


class CaptureError(MemlensError):
    """A run folder cannot be read: it is not ours, is damaged, or has another format version."""

    exit_code = 2


class MissingDependencyError(MemlensError):
    """An optional package is needed.

    Args:
        package: import name of what is missing.
        purpose: what it is needed for, as a verb phrase ("write TensorBoard files").
        extra: the memlens extra that installs it.
    """

    exit_code = 2

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f'{package} is needed to {purpose}; install it with: pip install "memlens[{extra}]"'
        )


class SourceError(MemlensError):
    """This machine or process cannot record what was asked."""


class SimulationError(MemlensError):
    """A job does something whose memory cannot be told without data."""
