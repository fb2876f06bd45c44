"""Opening the run that a command was given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.errors import UsageError
from memlens.options import is_url

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["check_run", "open_run"]

NEWEST = 5


def open_run(path: str) -> Capture:
    """Load a run, or say what to name instead.

    Raises:
        UsageError: nothing is there, or it is a folder of runs and not a run.
        CaptureError: it cannot be read.
    """
    import memlens

    return memlens.load(path if is_url(path) else check_run(path))


def check_run(path: str) -> Path:
    """The folder of a run.

    Raises:
        UsageError: nothing is there, or it is a folder of runs and not a run.
    """
    folder = Path(path)
    if not os.path.exists(path):
        raise UsageError(f"there is no run {path}; memlens run TRAIN.py makes one")
    if runs := _runs_in(folder):
        more = f", and {len(runs) - NEWEST} older" if len(runs) > NEWEST else ""
        raise UsageError(
            f"{path} is not a run but holds {len(runs)}; name one, newest first: "
            + ", ".join(str(run) for run in runs[:NEWEST])
            + more
        )
    return folder


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder that is not a run itself, newest first."""
    from memlens.disk.format import RUN_FILE

    if not folder.is_dir() or (folder / RUN_FILE).exists():
        return []
    found = [(file.stat().st_mtime_ns, file.parent) for file in folder.glob(f"*/{RUN_FILE}")]
    return [run for _, run in sorted(found, reverse=True)]
