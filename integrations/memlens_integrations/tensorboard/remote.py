"""A logdir behind a URL, read through TensorBoard's own file layer (`s3://`, `gs://`, fsspec).

Runs are looked for there, and copied into a cache when somebody asks about them: their headers first, and
their streams when a rank is opened. What has not changed is not copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from memlens.disk.format import RANK_FILE, RUN_FILE
from memlens.errors import CaptureError
from memlens.web.scan import Found

__all__ = ["RemoteFolder"]

MOST_DEPTH = 5
MOST_FOLDERS = 1_000
_RANK_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_STREAMS = ("names.arrow", "marks.arrow", "tags.arrow", "events.arrow")


class RemoteFolder:
    """A place of `memlens.web.scan`.

    Args:
        url: of the folder.
        name: goes in front of the keys.
    """

    def __init__(self, url: str, name: str = "") -> None:
        self._url = url.rstrip("/")
        self._name = name

    def find(self) -> Found:
        """Look through the folders, breadth first."""
        found = Found()
        level = [""]
        looked = 0
        for _ in range(MOST_DEPTH):
            below: list[str] = []
            for relative in level:
                looked += 1
                if looked > MOST_FOLDERS:
                    found.problems.append(
                        f"{self._url} holds more than {MOST_FOLDERS:,} folders; the rest was not "
                        "looked at (name a folder further below)"
                    )
                    return found
                try:
                    below += self._look(relative, found)
                except Exception as error:  # each file system has errors of its own
                    if not relative:
                        found.problems.append(f"cannot read {self._url}: {_line(error)}")
            level = below
        return found

    def _look(self, relative: str, found: Found) -> list[str]:
        """Note a run; or say which folders to look into next."""
        files = _files()
        url = _join(self._url, relative)
        inner = sorted({name.strip("/") for name in files.listdir(url)})
        if RUN_FILE in inner:
            key = "/".join(part for part in (self._name, relative) if part)
            found.runs[key or self._url.rpartition("/")[2] or "run"] = url
            return []
        return [
            f"{relative}/{name}".lstrip("/")
            for name in inner
            if name and not name.startswith(".") and files.isdir(f"{url}/{name}")
        ]

    def bring(self, where: str, *, whole: bool) -> Path:
        """Copy what is missing or has changed.

        Raises:
            CaptureError: it can not be read.
        """
        folder = _cache() / hashlib.sha256(where.encode()).hexdigest()[:16]
        # The run is called after its folder.
        folder /= re.sub(r"[^A-Za-z0-9_.-]+", "-", where.rpartition("/")[2]).lstrip(".") or "run"
        try:
            _copy(where, folder, RUN_FILE)
            for rank in sorted({name.strip("/") for name in _files().listdir(where)}):
                if _RANK_FOLDER.fullmatch(rank) and _files().isdir(f"{where}/{rank}"):
                    _bring_rank(f"{where}/{rank}", folder / rank, whole=whole)
        except Exception as error:
            raise CaptureError(f"cannot read {where}: {_line(error)}") from error
        return folder


def _bring_rank(url: str, folder: Path, *, whole: bool) -> None:
    names = {name.strip("/") for name in _files().listdir(url)}
    if RANK_FILE not in names:
        return
    before = _owner(folder)
    _copy(url, folder, RANK_FILE)
    if before not in (None, _owner(folder)):  # another process has recorded under the same name
        for name in _STREAMS:
            (folder / name).unlink(missing_ok=True)
    if whole:
        for name in sorted(names):
            if name in _STREAMS or re.fullmatch(r"oom[\w-]*\.json", name):
                _copy(url, folder, name)


def _owner(folder: Path) -> object:
    """Who recorded what was copied; None: nothing was."""
    try:
        return dict(json.loads((folder / RANK_FILE).read_bytes())).get("id")
    except (OSError, ValueError, TypeError):
        return None


def _copy(url: str, folder: Path, name: str) -> None:
    """Copy a file, unless a copy of the same length is there: streams only ever grow."""
    source, target = f"{url}/{name}", folder / name
    if (
        name in _STREAMS
        and target.exists()
        and _files().stat(source).length == target.stat().st_size
    ):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _files().GFile(source, "rb") as file:
        content = file.read()
    if target.exists() and target.read_bytes() == content:
        return  # its time of change tells whether it is to be read again
    partial = target.with_name(f".{name}.{os.urandom(6).hex()}")
    partial.write_bytes(content)
    partial.replace(target)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "memlens" / "tensorboard"


def _files() -> Any:
    from tensorboard.compat import tf

    return tf.io.gfile


def _join(url: str, relative: str) -> str:
    return f"{url}/{relative}" if relative else url


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
