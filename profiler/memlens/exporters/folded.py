"""Folded stacks of the peak, which flamegraph.pl, inferno and speedscope read.

    OUT/
      rank-0.by-stack.folded    one line per path: `rank 0;main train.py:3;...;weight 4096`
      rank-0.by-module.folded   `rank 0;layers;0;mlp;weight;layers.0.mlp.weight 4096`

Each path begins with its rank, so that the files of several ranks can be read as one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memlens.answers import Frame
from memlens.exporters import peak_paths
from memlens.exporters.rank_names import rank_file_name, rank_title
from memlens.report.text import plain
from memlens.report.view import choose_ranks

if TYPE_CHECKING:
    from memlens.capture import Capture

__all__ = ["export"]


def export(capture: Capture, folder: Path) -> None:
    """Write two files per rank."""
    ranks = choose_ranks(capture, None)
    for rank in ranks:
        root, name = rank_title(rank, ranks), rank_file_name(rank, ranks)
        for how, held in (
            ("by-stack", peak_paths.peak_by_stack(rank)),
            ("by-module", peak_paths.peak_by_module(rank)),
        ):
            lines = [
                f"{';'.join([root, *map(_frame, path)])} {size_bytes}\n"
                for path, size_bytes in held.items()
            ]
            (folder / f"{name}.{how}.folded").write_text("".join(lines), encoding="utf-8")
        rank.release()


def _frame(frame: Frame) -> str:
    """A semicolon ends a frame and a line break the path; there is no way to write them as text."""
    place = f" {frame.file}:{frame.line}" if frame.file else ""
    return plain(frame.function + place).replace(";", ":") or "(no name)"
