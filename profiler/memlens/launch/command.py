"""From the command line of `memlens run` to the job."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memlens.errors import UsageError

__all__ = ["Job", "become", "parse_job"]


@dataclass(frozen=True)
class Job:
    """What to run."""

    command: tuple[str, ...]
    """Program and arguments."""
    is_script: bool
    """It is one Python script or module, and so itself what is to be recorded."""


def parse_job(words: Sequence[str], *, module: str | None, literal: bool) -> Job:
    """Find out what to run.

    Args:
        words: the words behind memlens' own options.
        module: the module of `-m`, of which `words` are the arguments.
        literal: the words stood behind `--`: a command as in a shell.

    Raises:
        UsageError: there is no such script or command.
    """
    if module is not None:
        return Job((sys.executable, "-m", module, *words), is_script=True)
    if not words:
        raise UsageError(
            "nothing to run; give a script (memlens run train.py), a module (-m pkg.train) "
            "or a command (-- torchrun train.py)"
        )
    if literal:
        program = shutil.which(words[0])
        if program is None:
            raise UsageError(f"command not found: {words[0]}")
        return Job((program, *words[1:]), is_script=False)
    script = words[0]
    if not Path(script).exists():
        hint = (
            f"; for a command, write: memlens run -- {script} ..." if shutil.which(script) else ""
        )
        raise UsageError(f"no such script: {script}{hint}")
    return Job((sys.executable, *words), is_script=True)


def become(job: Job, environment: dict[str, str]) -> None:
    """Turn this process into the job: same pid, so that signals and the exit code are its own.

    Raises:
        UsageError: the program can not be run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(job.command[0], job.command, environment)
    except OSError as error:
        raise UsageError(f"cannot run {job.command[0]}: {error.strerror}") from error
