"""Copies a rank's folder to where the run goes, in a process of its own.

    python -m memlens.disk.upload FOLDER URL

Not in the job's process: the libraries behind a URL need threads, which an interpreter that shuts down
does not start any more, and what they do in the meantime must not hold up a training.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from memlens.errors import MemlensError

__all__ = ["Upload"]

TIMEOUT_S = 600


class Upload:
    """A copy that is under way.

    Args:
        folder: the rank's.
        url: where the run goes.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        environment = {**os.environ, "MEMLENS_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "memlens.disk.upload", str(folder), url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )

    def wait(self) -> None:
        """Wait until it is done; whatever went wrong has been said."""
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            _warn(self._folder, self._url, f"it took more than {TIMEOUT_S} s")


def _warn(folder: Path, url: str, reason: str) -> None:
    print(
        f"memlens: this rank's capture is not at {url} ({reason}); it lies in {folder}",
        file=sys.stderr,
    )


def _main() -> None:
    from memlens.disk.remote import upload_rank

    folder, url = Path(sys.argv[1]), sys.argv[2]
    try:
        upload_rank(folder, url)
    except MemlensError as error:
        _warn(folder, url, str(error))
        sys.exit(1)


if __name__ == "__main__":
    _main()
