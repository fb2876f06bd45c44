"""Writing a capture for other tools: one table, one exporter per file.

An exporter is a function `export(capture, out)` that writes one file, or fills a folder which is new
and empty; which of them, the table says. It asks the capture questions and never reads its files.
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
    """How to open the result; `{path}` stands for it, quoted for a shell."""
    file: str = ""
    """What the file is called, if the result is one; empty: a folder, named after the tool."""
    text: str = ""
    """One line about it, for `memlens export --help`."""


EXPORTERS: dict[str, Exporter] = {
    "tensorboard": Exporter(
        "memlens.exporters.tensorboard.export:export",
        "tensorboard --logdir {path}",
        text="curves per category and step, tables and a picture",
    ),
    "parquet": Exporter(
        "memlens.exporters.tables.export:export_parquet",
        """cd {path} && duckdb -c "FROM 'ranks.parquet'"; columns.md explains each column""",
        text="tables of blocks, steps and more, for DuckDB or pandas",
    ),
    "csv": Exporter(
        "memlens.exporters.tables.export:export_csv",
        """cd {path} && duckdb -c "FROM 'ranks.csv'"; columns.md explains each column""",
        text="the same tables as text",
    ),
    "html": Exporter(
        "memlens.exporters.html.page:export",
        "a browser, with {path}",
        "memory.html",
        text="one page to look into the run, which needs no network",
    ),
    "svg": Exporter(
        "memlens.exporters.pictures.export:export_svg",
        "a browser, with {path}",
        "memory.svg",
        text="a picture of the peak and the timeline, light or dark",
    ),
    "png": Exporter(
        "memlens.exporters.pictures.export:export_png",
        "any viewer of pictures, with {path}",
        "memory.png",
        text="the same picture in pixels",
    ),
    "torch-tb-profiler": Exporter(
        "memlens.exporters.torch_tb_profiler:export",
        "tensorboard --logdir {path}, with `pip install torch-tb-profiler`; its Memory view",
        text="traces for TensorBoard's PyTorch Profiler plugin",
    ),
    "memory-viz": Exporter(
        "memlens.exporters.memory_viz:export",
        "drop {path} onto https://pytorch.org/memory_viz",
        "memory-viz.pickle",
        text="a torch memory snapshot, with our categories",
    ),
    "perfetto": Exporter(
        "memlens.exporters.perfetto:export",
        "https://ui.perfetto.dev (Open trace file), with {path}",
        "perfetto.json.gz",
        text="a trace: levels by category, steps, phases and modules",
    ),
    "speedscope": Exporter(
        "memlens.exporters.speedscope:export",
        "npx speedscope {path}, or drop it onto https://www.speedscope.app",
        "speedscope.json",
        text="flame graphs of the peak, by stack and by module",
    ),
    "folded": Exporter(
        "memlens.exporters.folded:export",
        "flamegraph.pl --countname bytes {path}/*.by-stack.folded > peak.svg",
        text="folded stacks of the peak, for flamegraph.pl",
    ),
}
"""Every exporter, by the name of the tool or format."""


def export(capture: Capture, to: str, out: Path | None = None) -> Path:
    """Write a capture for another tool.

    Args:
        capture: what to write.
        to: one of the names in EXPORTERS.
        out: the file or folder to make; None means one inside the run.

    Returns:
        The file or folder.

    Raises:
        OutputExistsError: it is there, and no empty folder; nothing is ever overwritten.
        MissingDependencyError: the exporter needs a package that is not installed.
        UsageError: it cannot be written.
    """
    exporter = EXPORTERS[to]
    module, _, function = exporter.target.partition(":")
    write: Callable[[Capture, Path], None] = getattr(import_module(module), function)
    result = out if out is not None else Path(capture.info.path) / (exporter.file or to)
    # Made beside its final place and moved there when complete, so that a failure leaves nothing
    # that looks like a result, and a tool that watches the folder never reads half of it.
    unfinished = result.with_name(f".{result.name}.unfinished-{os.getpid()}")
    try:
        if result.exists() and (exporter.file or not result.is_dir() or any(result.iterdir())):
            raise OutputExistsError(
                f"{result} is already there and is never overwritten; "
                "remove it, or choose another with --out"
            )
        (unfinished.parent if exporter.file else unfinished).mkdir(parents=True, exist_ok=True)
        try:
            write(capture, unfinished)
            unfinished.replace(result)
        finally:
            if unfinished.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {result}: {error.strerror or error}") from error
    return result
