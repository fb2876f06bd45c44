"""Everything that a comparison leaves in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memlens.comparing.outputs.files import write_csv, write_json
from memlens.errors import MissingDependencyError

if TYPE_CHECKING:
    from memlens.comparing.capacity import Capacity
    from memlens.comparing.results import Comparison

__all__ = ["write_all"]

CHARTS = ("chart.svg", "chart.png")


def write_all(
    comparison: Comparison, folder: Path, *, rollup: bool, capacities: Sequence[Capacity]
) -> list[str]:
    """Write the table for programs, and the chart where matplotlib is installed.

    Files of an earlier comparison in the same folder give way: they are made from the results that
    are kept beside them.

    Returns:
        What was written, or why it was not: a line each.
    """
    write_json(comparison, folder / "comparison.json")
    write_csv(comparison, folder / "comparison.csv")
    written = [f"wrote {folder / name}" for name in ("comparison.json", "comparison.csv")]
    try:
        from memlens.comparing.outputs.chart import draw_chart
    except MissingDependencyError as error:
        return [*written, f"no chart: {error}"]
    for name in CHARTS:
        draw_chart(comparison, folder / name, rollup=rollup, capacities=capacities)
        written.append(f"wrote {folder / name}")
    return written
