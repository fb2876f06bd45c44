"""Fetch older versions of DeepSpeed for the tests of its adapter: `python tools/old_deepspeed.py`.

They are unpacked into `.cache/`, not installed: tests put one of them first on the path.
A version that is there already is left alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

__all__ = ["VERSIONS", "find"]

VERSIONS = ("0.15.4", "0.16.9", "0.17.6")
"""Before and after buckets got other names, and the last before gradients are one flat tensor."""
CACHE = Path(__file__).parents[1] / ".cache"


def find(version: str) -> Path:
    """Where a version is unpacked, or would be."""
    return CACHE / f"deepspeed-{version}"


def fetch(version: str) -> None:
    """Download the source archive of a version and unpack it.

    Raises:
        SystemExit: it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"),
                *("--no-deps", "--no-binary", ":all:", "-d", folder, f"deepspeed=={version}"),
            ],
            capture_output=True,
            text=True,
        )
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise SystemExit(
                f"DeepSpeed {version} cannot be downloaded: {done.stderr.strip()[-500:]}"
            )
        CACHE.mkdir(exist_ok=True)
        with tarfile.open(archives[0]) as archive, tempfile.TemporaryDirectory(dir=CACHE) as place:
            archive.extractall(place, filter="data")
            (Path(place) / f"deepspeed-{version}").rename(find(version))


def main() -> None:
    """See to it that all of them are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, help="default: all that tests use")
    for version in parser.parse_args().versions:
        if not find(version).is_dir():
            fetch(version)
        print(find(version))


if __name__ == "__main__":
    main()
