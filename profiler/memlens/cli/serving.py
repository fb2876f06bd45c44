"""Starts TensorBoard in this process and waits for Ctrl-C."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import click

from memlens.errors import MissingDependencyError, UsageError
from memlens.options import is_url

__all__ = ["logdir_of", "serve"]


def logdir_of(runs: Sequence[str]) -> list[str]:
    """TensorBoard's options for some runs, or folders of runs.

    Raises:
        UsageError: one is not there, or can not be told to TensorBoard.
    """
    for run in runs:
        if not is_url(run) and not os.path.isdir(run):
            raise UsageError(f"there is no folder {run}; memlens run TRAIN.py makes one")
    places = [run if is_url(run) else str(Path(run).resolve()) for run in runs]
    if len(places) == 1:
        return ["--logdir", places[0]]
    for place in places:
        if "," in place:
            raise UsageError(
                f"TensorBoard takes several folders only if there is no comma in any; rename {place}, "
                "or view the folder around it"
            )
    parts = [f"{name}:{place}" for name, place in zip(_names(places), places, strict=True)]
    return ["--logdir_spec", ",".join(parts)]


def _names(places: Sequence[str]) -> list[str]:
    """What each is called: by its folder, with a number if others are called so, too."""
    found: list[str] = []
    for place in places:
        stem = place.rstrip("/").rpartition("/")[2].replace(":", "-") or "runs"
        name, number = stem, 2
        while name in found:
            name, number = f"{stem}-{number}", number + 1
        found.append(name)
    return found


def serve(logdir: Sequence[str], host: str, port: int | None) -> None:
    """Print the address, and come back after Ctrl-C.

    Raises:
        MissingDependencyError: tensorboard is not installed.
        UsageError: it can not listen there.
    """
    try:
        from tensorboard import program
    except ImportError:
        raise MissingDependencyError(
            "tensorboard", "look at runs in a browser", "tensorboard"
        ) from None
    server = program.TensorBoard()
    where = ["--host", host, *(() if port is None else ("--port", str(port)))]
    # Its faster way of reading event files, of which a run has none, prints a note and is a process.
    where.append("--load_fast=false")
    # Every request would be a line otherwise.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        server.configure(argv=["tensorboard", *logdir, *where])
        address = server.launch()
    except (program.TensorBoardServerException, SystemExit, OSError) as error:
        raise UsageError(f"TensorBoard does not start: {_reason(error)}") from None
    try:
        click.echo(f"{address.rstrip('/')}/#memlens")
        click.echo("(Ctrl-C ends it)")
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("")


def _reason(error: BaseException) -> str:
    text = getattr(error, "msg", None) or str(error)
    return " ".join(str(text).split())
