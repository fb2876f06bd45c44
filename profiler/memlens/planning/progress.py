"""How far a simulation has come, on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from memlens.report.text import plain

__all__ = ["planning"]

_WIDTH = 50


@contextmanager
def planning(what: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is simulated, for how long, and what the job printed last.

    Args:
        what: to call it.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", style="dim", markup=False),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bar:
        task = bar.add_task(f"simulating {plain(what)[:_WIDTH]}", total=None, line="")
        yield lambda line: bar.update(task, line=plain(line)[:_WIDTH])
