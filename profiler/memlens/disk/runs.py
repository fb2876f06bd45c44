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

__all__ = ["DEFAULT_FOLDER", "create_run", "open_planned", "plan_run"]

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
    wanted = options.out
    parent = Path(DEFAULT_FOLDER).absolute() if wanted is None else Path(wanted).absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if wanted is None:
            folder = _make_new(parent, options.name or _name_of(command))
        else:
            folder = _make_given(Path(wanted).absolute())
        _write_header(folder, command)
    except OSError as error:
        raise UsageError(
            f"cannot make the output folder {wanted or parent}: {error.strerror}"
        ) from error
    return folder


def plan_run(options: Options, *, command: tuple[str, ...]) -> Path:
    """Choose the folder of a run that may never be made; `open_planned` makes it.

    Raises:
        OutputExistsError: it is already there.
    """
    if options.out is not None:
        folder = options.out.absolute()
        if folder.exists():
            raise OutputExistsError(_exists(folder))
        return folder
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{options.name or _name_of(command)}"
    return Path(DEFAULT_FOLDER).absolute() / f"{stem}-{os.getpid()}"


def open_planned(folder: Path, *, command: tuple[str, ...]) -> None:
    """Make the folder of a planned run, unless another rank has made it already.

    Raises:
        OSError: it can not be made.
    """
    from memlens.disk.format import RUN_FILE

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_FILE).exists():
        _write_header(folder, command)


def _write_header(folder: Path, command: tuple[str, ...]) -> None:
    from memlens.disk.format import FORMAT_NAME, FORMAT_VERSION, RUN_FILE, write_json

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


def _exists(folder: Path) -> str:
    return (
        f"output folder exists already and is never overwritten: {folder}; "
        "choose another with --out (or MEMLENS_OUT), or remove it"
    )


def _make_given(folder: Path) -> Path:
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):  # else there is nothing to overwrite
            raise OutputExistsError(_exists(folder)) from None
    return folder


def _make_new(parent: Path, name: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # another run of this second
            number += 1
        else:
            return folder


def _name_of(command: tuple[str, ...]) -> str:
    """The script's name, from a command line such as `torchrun --nproc 2 train.py --lr 1`."""
    script = next((word for word in command if word.endswith(".py")), None)
    if script is None and "-m" in command[:-1]:
        script = command[command.index("-m") + 1].rpartition(".")[2]
    if script is None:
        script = command[0] if command and command[0] else os.path.basename(sys.executable)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(script).stem)[:60] or "run"
