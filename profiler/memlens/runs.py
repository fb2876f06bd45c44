"""Folders of runs: where a new one goes, and what `run.json` says."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime
from pathlib import Path
from time import time_ns

from memlens import __version__
from memlens.errors import OutputExistsError, UsageError
from memlens.options import Options

__all__ = ["DEFAULT_FOLDER", "create_run"]

DEFAULT_FOLDER = "memlens-runs"


def create_run(options: Options, *, command: tuple[str, ...]) -> Path:
    """Make the folder of a new run, with its `run.json`.

    Args:
        options: their `out` is the folder; None chooses one under `memlens-runs`.
        command: the job's command line.

    Returns:
        The folder's absolute path.

    Raises:
        OutputExistsError: it is already there. A capture is never overwritten.
        UsageError: it can not be made.
    """
    from memlens.format import FORMAT_NAME, FORMAT_VERSION, RUN_FILE, write_json

    folder = options.out
    try:
        if folder is not None:
            folder = Path(folder).absolute()
            _make(folder)
        else:
            folder = _choose(options.name or _name_of(command))
    except FileExistsError:
        raise OutputExistsError(
            f"output folder exists already and is never overwritten: {folder}; "
            "choose another with --out (or MEMLENS_OUT), or remove it"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot make the output folder {folder}: {error.strerror}") from error
    write_json(
        folder / RUN_FILE,
        {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "memlens": __version__,
            "command": list(command),
            "created_ns": time_ns(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "units": {"size": "bytes", "time": "nanoseconds since the Unix epoch"},
        },
    )
    return folder


def _make(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return  # made beforehand and still empty: nothing to overwrite
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()


def _choose(name: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for number in range(1, 1000):
        folder = Path(DEFAULT_FOLDER).absolute() / (stem if number == 1 else f"{stem}-{number}")
        try:
            _make_new(folder)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(stem)


def _make_new(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()


def _name_of(command: tuple[str, ...]) -> str:
    """The script's name, from a command line such as `torchrun --nproc 2 train.py --lr 1`."""
    script = next((word for word in command if word.endswith(".py")), None)
    if script is None and "-m" in command[:-1]:
        script = command[command.index("-m") + 1].rpartition(".")[2]
    if script is None:
        script = command[0] if command and command[0] else os.path.basename(sys.executable)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(script).stem)[:60] or "run"
