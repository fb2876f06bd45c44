"""Runs that lie behind a URL (`s3://bucket/run`, `gs://…`, `file://…`), through fsspec.

Recording writes to a local folder, always. Each rank copies its own when it closes, and nothing that
two processes write is ever the same file. Reading copies the run into a cache first, what has changed
since the last time only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

from memlens.disk.format import RANK_FILE, RUN_FILE
from memlens.disk.headers import one_line
from memlens.errors import CaptureError, MissingDependencyError, OutputExistsError, UsageError

__all__ = ["claim_remote_run", "fetch_run", "upload_rank"]

_BACKENDS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
}
"""What fsspec needs for a protocol: package, and our extra that installs it."""
_OURS = re.compile(
    r"(run\.json|[\w.-]+/(rank\.json|oom[\w-]*\.json|(names|marks|tags|events)\.arrow))"
)
_MANIFEST = ".memlens-fetched.json"


def claim_remote_run(url: str, run: Path, *, join: bool) -> None:
    """Put the `run.json` of a new run to its place, so that the ranks' folders can follow.

    Args:
        url: where the run goes.
        run: its local folder.
        join: another host may have done so already.

    Raises:
        OutputExistsError: there is a run already, or ranks of one that has ended.
        UsageError: the place can not be reached, or not be written to.
        MissingDependencyError: a package is needed to reach it.
    """
    files, root = _open(url)
    try:
        if not files.exists(f"{root}/{RUN_FILE}"):
            files.makedirs(root, exist_ok=True)
            files.put_file(str(run / RUN_FILE), f"{root}/{RUN_FILE}")
            return
        ended = files.glob(f"{root}/*/{RANK_FILE}")
    except Exception as error:  # each backend has errors of its own
        raise UsageError(f"cannot write to {url}: {one_line(error)}") from error
    if ended or not join:
        raise OutputExistsError(
            f"{url} holds a run already, and captures are never overwritten; choose another --out"
        )


def upload_rank(folder: Path, url: str) -> str:
    """Copy a rank's folder to its run; `rank.json` comes last, as it says that the rest is there.

    Returns:
        Where it is now.

    Raises:
        UsageError: it can not be copied.
        MissingDependencyError: a package is needed to reach the place.
    """
    files, root = _open(url)
    try:
        target = f"{root}/{folder.name}"
        if files.exists(f"{target}/{RANK_FILE}"):  # of an earlier start of the job, on another host
            target += f"-{socket.gethostname()}-{os.getpid()}"
        files.makedirs(target, exist_ok=True)
        if not files.exists(f"{root}/{RUN_FILE}"):  # with --oom-only there is a run only now
            files.put_file(str(folder.parent / RUN_FILE), f"{root}/{RUN_FILE}")
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RANK_FILE):
            if path.is_file() and not path.name.startswith("."):
                files.put_file(str(path), f"{target}/{path.name}")
    except Exception as error:  # each backend has errors of its own
        raise UsageError(f"cannot copy {folder} to {url}: {one_line(error)}") from error
    return target


def fetch_run(url: str) -> Path:
    """Copy a run into the cache, and say where that is.

    Raises:
        CaptureError: there is no run, or it can not be read.
        MissingDependencyError: a package is needed to reach it.
    """
    files, root = _open(url)
    name = (
        re.sub(r"[^A-Za-z0-9_.-]+", "-", root.rstrip("/").rpartition("/")[2]).lstrip(".") or "run"
    )
    folder = _cache() / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16] / name
    try:
        wanted = _listing(files, root)
        if RUN_FILE not in wanted:
            raise CaptureError(f"not a memlens run: {url}/{RUN_FILE} is missing")
        there = _fetched(folder)
        missing = [path for path in wanted if there.get(path) != wanted[path]]
        for path in missing:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if missing:
            files.get(
                [f"{root}/{path}" for path in missing], [str(folder / path) for path in missing]
            )
        for path in set(there) - set(wanted):
            (folder / path).unlink(missing_ok=True)
        (folder / _MANIFEST).write_text(json.dumps(wanted))
    except CaptureError:
        raise
    except Exception as error:  # each backend has errors of its own
        raise CaptureError(f"cannot read {url}: {one_line(error)}") from error
    return folder


def _listing(files: Any, root: str) -> dict[str, str]:
    """The files of a run, and what changes when they do."""
    found = files.find(root, maxdepth=2, detail=True)
    prefix = root.rstrip("/") + "/"
    return {
        path[len(prefix) :]: hashlib.sha256(
            json.dumps(
                [
                    entry.get(key)
                    for key in ("size", "ETag", "etag", "mtime", "updated", "LastModified")
                ],
                default=str,
            ).encode()
        ).hexdigest()
        for path, entry in found.items()
        if path.startswith(prefix) and _OURS.fullmatch(path[len(prefix) :])
    }


def _fetched(folder: Path) -> dict[str, str]:
    """What the cache holds already."""
    try:
        content = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        path: state
        for path, state in content.items()
        if _OURS.fullmatch(path) and (folder / path).is_file()
    }


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "memlens"


def _open(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0].lower()
    try:
        core = import_module("fsspec.core")
    except ImportError:
        raise MissingDependencyError("fsspec", f"reach {url}", "fsspec") from None
    try:
        files, root = core.url_to_fs(url)
    except ImportError as error:
        if protocol in _BACKENDS:
            package, extra = _BACKENDS[protocol]
            raise MissingDependencyError(package, f"reach {url}", extra) from None
        raise UsageError(f"cannot reach {url}: {one_line(error)}") from None
    except Exception as error:
        raise UsageError(f"cannot reach {url}: {one_line(error)}") from None
    return files, str(root).rstrip("/")
