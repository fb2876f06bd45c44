"""Putting a file in its place at once."""

from __future__ import annotations

import os
from pathlib import Path

from memlens.errors import UsageError

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in its place at once, over an earlier one if need be.

    Raises:
        UsageError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
