"""Writing a capture for other tools: one table, one exporter per file.

An exporter is a function `export(capture, folder)` that fills a folder which is new and empty. It
asks the capture questions and never reads its files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.errors import OutputExistsError, UsageError

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["EXPORTERS", "Exporter", "export"]


@dataclass(frozen=True)
class Exporter:
    """One row of the table of exporters."""

    target: str
    """`module:function`."""
    opens_with: str
    """The command that opens the result; the folder comes after it."""


EXPORTERS: dict[str, Exporter] = {
    "tensorboard": Exporter("memlens.exporters.tensorboard:export", "tensorboard --logdir"),
}
"""Every exporter. The name is also that of the default folder, inside the run."""


def export(capture: Capture, to: str, out: Path | None = None) -> Path:
    """Write a capture for another tool.

    Args:
        capture: what to write.
        to: one of the names in EXPORTERS.
        out: the folder to make; None means one inside the run, named after the exporter.

    Returns:
        The folder.

    Raises:
        OutputExistsError: the folder is there and not empty; nothing is ever overwritten.
        MissingDependencyError: the exporter needs a package that is not installed.
        UsageError: the folder cannot be written.
    """
    module, _, function = EXPORTERS[to].target.partition(":")
    write: Callable[[Capture, Path], None] = getattr(import_module(module), function)
    folder = out if out is not None else Path(capture.info.path) / to
    # Made beside its final place and moved there when complete, so that a failure leaves nothing
    # that looks like a result, and a tool that watches the folder never reads half of it.
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputExistsError(
                f"{folder} is already there and is never overwritten; "
                "remove it, or choose another with --out"
            )
        unfinished.mkdir(parents=True)
        try:
            write(capture, unfinished)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    return folder
