"""How far a comparison has come, on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from memlens.comparing.compare import Progress
from memlens.comparing.results import Result, Status
from memlens.report.text import plain
from memlens.units import format_bytes

__all__ = ["make_progress"]

_WIDTH = 40


@contextmanager
def make_progress(total: int | None) -> Iterator[Progress]:
    """A bar that moves with every variant, and a line for each that is done.

    Args:
        total: how many variants there are; None: that turns out.
    """
    console = Console(stderr=True, highlight=False)
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[line]}", style="dim", markup=False),
        console=console,
        transient=True,
    )
    with bar:
        yield _Bar(bar, total)


class _Bar:
    def __init__(self, bar: Bar, total: int | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total, line="")

    def begin(self, name: str) -> None:
        self._bar.update(self._task, description=name, line="")

    def tell(self, line: str) -> None:
        self._bar.update(self._task, line=plain(line)[:_WIDTH])

    def end(self, result: Result) -> None:
        if result.status is Status.OK and result.peak is not None:
            text = f"peak {format_bytes(result.peak.allocated_bytes)}"
        else:
            text = f"{result.status.value}: {result.reason}"
        if result.reused:
            text += " (from an earlier call)"
        self._bar.console.print(f"{result.name}: {plain(text)}", markup=False, soft_wrap=True)
        self._bar.advance(self._task)
