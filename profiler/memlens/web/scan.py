"""Finds runs below a folder, without following a link twice and without going on for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from memlens.disk.format import RUN_FILE

__all__ = ["Folder", "Found", "Place"]

MOST_FOLDERS = 20_000
"""Looked into at most, below one folder: a log folder may hold a whole training's outputs."""
MOST_RUNS = 1_000
MOST_DEPTH = 12


@dataclass
class Found:
    """What a search has found."""

    runs: dict[str, str] = field(default_factory=dict)
    """Where each run is, by its key: its path relative to where the search began."""
    problems: list[str] = field(default_factory=list)
    """What was left out, one sentence each."""


class Place(Protocol):
    """Somewhere runs may be."""

    def find(self) -> Found:
        """Search it; never raises."""

    def bring(self, where: str, *, whole: bool) -> Path:
        """A run's folder on this machine, up to date.

        Args:
            where: as `find` told.
            whole: with its streams; else its headers are enough.

        Raises:
            MemlensError: it can not be reached.
        """


@dataclass(frozen=True)
class Folder:
    """A folder of this machine: a run, or anything that holds runs somewhere below.

    Args:
        path: the folder.
        name: goes in front of the keys; for one of several folders.
    """

    path: Path
    name: str = ""

    def find(self) -> Found:
        """Walk through the folder, breadth first; a run is not looked into."""
        found = Found()
        for looked, (folder, relative, is_run) in enumerate(_walk(self.path), 1):
            if is_run and not _is_text(str(folder)):
                found.problems.append(f"the name of {str(folder)!a} is no text; rename it")
            elif is_run:
                key = "/".join(part for part in (self.name, relative) if part)
                found.runs[key or folder.absolute().name or "run"] = str(folder)
            if len(found.runs) >= MOST_RUNS or looked >= MOST_FOLDERS:
                found.problems.append(
                    f"{self.path} holds more than {MOST_RUNS:,} runs or {MOST_FOLDERS:,} folders; "
                    "the rest was not looked at (name a folder further below)"
                )
                break
        return found

    def bring(self, where: str, *, whole: bool) -> Path:
        """It is here already."""
        return Path(where)


def _walk(root: Path) -> Iterator[tuple[Path, str, bool]]:
    """Folders, their paths relative to the root, and whether each is a run."""
    level = [(root, "")]
    seen: set[tuple[int, int]] = set()
    for _ in range(MOST_DEPTH):
        below: list[tuple[Path, str]] = []
        for folder, relative in level:
            try:
                state = folder.stat()
                if (state.st_dev, state.st_ino) in seen:  # a link to what was seen already
                    continue
                seen.add((state.st_dev, state.st_ino))
                is_run = (folder / RUN_FILE).is_file()
                inner = [] if is_run else sorted(_folders(folder))
            except OSError:  # not ours to read, or gone meanwhile
                continue
            yield folder, relative, is_run
            below += [(folder / name, f"{relative}/{name}".lstrip("/")) for name in inner]
        level = below


def _is_text(name: str) -> bool:
    """Whether a page can send it back: no bytes that the file system's encoding does not have."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if not entry.name.startswith(".") and entry.is_dir():
                    yield entry.name
            except OSError:
                continue
