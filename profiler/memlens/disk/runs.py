"""Folders of runs: where a new one goes, and what `run.json` says."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep, time_ns

from memlens import __version__
from memlens.disk.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    RANK_FILE,
    RUN_FILE,
    read_json,
    write_json,
)
from memlens.errors import OutputExistsError, UsageError
from memlens.options import Options

__all__ = ["DEFAULT_FOLDER", "create_run", "open_planned", "plan_run"]

DEFAULT_FOLDER = "memlens-runs"
SOON_S = 5
"""Longer than a shared file system takes to show other hosts what one of them has written."""


def create_run(options: Options, *, command: tuple[str, ...]) -> Path:
    """Make the folder of a new run, with its `run.json`; or join it, if another host has made it.

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
            folder = _make_given(Path(wanted).absolute(), join=options.join)
        if not (folder / RUN_FILE).exists():
            _write_header(folder, command)
    except OSError as error:
        raise UsageError(
            f"cannot make the output folder {wanted or parent}: {error.strerror}"
        ) from error
    if options.upload is not None:
        from memlens.disk.remote import claim_remote_run

        claim_remote_run(options.upload, folder, join=options.join)
    return folder


def plan_run(options: Options, *, command: tuple[str, ...]) -> Path:
    """Choose the folder of a run that may never be made; `open_planned` makes it.

    Raises:
        OutputExistsError: it is already there.
    """
    if options.out is not None:
        folder = options.out.absolute()
        if folder.exists() and not (options.join and _is_joinable(folder)):
            raise OutputExistsError(_exists(folder))
        return folder
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{options.name or _name_of(command)}"
    return Path(DEFAULT_FOLDER).absolute() / f"{stem}-{os.getpid()}"


def open_planned(folder: Path, *, command: tuple[str, ...]) -> None:
    """Make the folder of a planned run, unless another rank has made it already.

    Raises:
        OSError: it can not be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RUN_FILE).exists():
        _write_header(folder, command)


def _write_header(folder: Path, command: tuple[str, ...]) -> None:
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


def _make_given(folder: Path, *, join: bool) -> Path:
    try:
        folder.mkdir()
    except FileExistsError:
        is_free = folder.is_dir() and not any(folder.iterdir())  # there is nothing to overwrite
        if not is_free and not (join and _is_joinable(folder)):
            raise OutputExistsError(_exists(folder)) from None
    return folder


def _is_joinable(folder: Path) -> bool:
    """Whether a folder is that of a run which another host has just begun.

    Ranks of one job end together, so a run of which one has ended in good order is an earlier one.
    """
    deadline = monotonic() + SOON_S
    while not (folder / RUN_FILE).exists():  # it is about to write that, or the folder is another
        if monotonic() > deadline:
            return False
        sleep(0.1)
    for path in folder.glob(f"*/{RANK_FILE}"):
        try:
            header, _ = read_json(path)
        except (OSError, ValueError, RecursionError):
            continue
        if header.get("closed") and header.get("error") is None:
            return False
    return True


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
