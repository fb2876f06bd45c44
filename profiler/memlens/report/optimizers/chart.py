"""What optimizers cost per parameter as a stacked bar chart, as SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlens.catalogue.measured import conditions, measured
from memlens.catalogue.row import Row
from memlens.catalogue.table import CATALOGUE
from memlens.catalogue.variant import NO_RETAIN_GRAD, Variant, parse_variant
from memlens.disk.replace import replace_file
from memlens.errors import UsageError
from memlens.events import Category
from memlens.palette import CATEGORY_SERIES
from memlens.report.figure import (
    FAINT,
    GREY,
    INK,
    draw_legend,
    draw_segment,
    figure_bytes,
    file_kind,
    keep_if_it_fits,
    make_figure,
)
from memlens.report.optimizers.view import plain_of

# Behind memlens.report.figure, which says what to install where matplotlib is missing.
from matplotlib.ticker import FuncFormatter, MultipleLocator  # isort: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["Bar", "bars_of", "draw_optimizers"]

ROW_INCHES = 0.33
HEAD_INCHES = 2.35
"""For title, axes and legend."""
TITLE_POINTS = (76, 62, 49)
"""How far above the bars the title and the two lines below it stand."""
TICKS = 10
ROOM = 1.12
"""Width of the axis, by the longest bar: its total stands behind it."""

_WEIGHT_BYTES = {"fp32": 4, "bf16": 2}

_DEFAULT_IMPLEMENTATIONS = ("adamw-foreach", "adamw-loop", "adamw-fused")
_DEFAULT_IN_BACKWARD = ("adamw", "adamw8bit", "adafactor", "galore-adamw8bit")
"""Those that are also shown without retained gradients, when nobody says what."""

_SHOWN = (
    Category.MASTER_WEIGHT,
    Category.OPTIMIZER_STATE,
    Category.GRADIENT,
    Category.OPTIMIZER_TEMPORARY,
)


@dataclass(frozen=True)
class Bar:
    """One optimizer, in bytes per parameter."""

    name: str
    amounts: dict[Category, float]

    @property
    def total(self) -> float:
        """Of all amounts."""
        return sum(self.amounts.values())


def draw_optimizers(path: Path, dtype: str, only: Sequence[str] = ()) -> int:
    """Write the chart; an earlier file of this name gives way.

    Args:
        path: ends with `.svg` or `.png`.
        dtype: of the parameters, `fp32` or `bf16`.
        only: names, each perhaps with `+no-retain-grad`; empty: a selection of them.

    Returns:
        How many bars there are.

    Raises:
        UsageError: the path has another ending, or cannot be written; there is no such optimizer, or
            nothing was measured of it.
    """
    kind = file_kind(path)
    bars = bars_of(dtype, only)
    replace_file(path, figure_bytes(lambda: _draw(bars, dtype), kind))
    return len(bars)


def bars_of(dtype: str, only: Sequence[str] = ()) -> list[Bar]:
    """The bars of a chart, the cheapest first; see `draw_optimizers`."""
    if only:
        bars = [_bar(variant, dtype) for variant in map(_variant, only)]
        for name, bar in zip(only, bars, strict=True):
            if bar is None:
                raise UsageError(f"nothing was measured of {name}; leave it out")
    else:
        bars = [_bar(variant, dtype) for variant in _default()]
    return sorted((bar for bar in bars if bar), key=lambda bar: (round(bar.total, 3), bar.name))


def _variant(text: str) -> tuple[Row, bool]:
    variant: Variant = parse_variant(text)
    if variant.row is None or variant.options:
        raise UsageError(f"the chart shows optimizers with their default options, not {text}")
    return variant.row, variant.no_retain_grad


def _default() -> list[tuple[Row, bool]]:
    rows = [
        row
        for row in CATALOGUE.values()
        if plain_of(row) is None or row.name in _DEFAULT_IMPLEMENTATIONS
    ]
    return [(row, False) for row in rows] + [
        (CATALOGUE[name], True) for name in _DEFAULT_IN_BACKWARD
    ]


def _bar(variant: tuple[Row, bool], dtype: str) -> Bar | None:
    row, no_retain_grad = variant
    figures = measured(row.name, dtype)
    if figures is None:
        return None
    gradient, temporary = figures.gradient, figures.temporary
    if no_retain_grad:
        gradient = figures.no_retain_gradient or 0.0
        temporary = figures.no_retain_temporary or 0.0
    return Bar(
        row.name + (NO_RETAIN_GRAD if no_retain_grad else ""),
        {
            Category.MASTER_WEIGHT: figures.master_weight,
            Category.OPTIMIZER_STATE: figures.matrix_state,
            Category.GRADIENT: gradient,
            Category.OPTIMIZER_TEMPORARY: temporary,
        },
    )


def _draw(bars: Sequence[Bar], dtype: str) -> Figure:
    figure = make_figure(HEAD_INCHES + ROW_INCHES * len(bars))
    axes = figure.subplots()
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_xlim(0, max(max(bar.total for bar in bars) * ROOM, 1e-3))
    _frame(axes, bars, dtype)
    labels: list[tuple[Text, float]] = []
    shown = [each for each in CATEGORY_SERIES if each.members[0] in _SHOWN]
    for row, bar in enumerate(bars):
        left = 0.0
        for each in shown:
            amount = bar.amounts[each.members[0]]
            if amount:
                labels.append(draw_segment(axes, row, left, amount, each.colour, _short(amount)))
                left += amount
        axes.annotate(
            _short(bar.total),
            (left, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center_baseline",
            color=INK,
            fontweight="bold",
        )
    draw_legend(
        figure, [each for each in shown if any(bar.amounts[each.members[0]] for bar in bars)]
    )
    figure.draw_without_rendering()
    for label, size in labels:
        keep_if_it_fits(axes, label, size)
    return figure


def _frame(axes: Axes, bars: Sequence[Bar], dtype: str) -> None:
    """Names, both axes, title."""
    copy = _WEIGHT_BYTES[dtype]
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], color=INK, fontsize=9)
    axes.tick_params(axis="y", length=0, pad=8)
    scale: Any = (lambda size: size / copy, lambda number: number * copy)
    copies = axes.secondary_xaxis("top", functions=scale)
    # Ticks at whole copies on both axes, so that they share the lines between the bars.
    step = 0.25
    while axes.get_xlim()[1] / copy / step > TICKS:
        step *= 2
    for each, unit, label in (
        (axes, copy, "bytes per parameter"),
        (copies, 1, f"copies of the {dtype} parameters, {copy} bytes each"),
    ):
        each.set_xlabel(label, color=INK, labelpad=5)
        each.tick_params(axis="x", colors=INK, length=3)
        each.xaxis.set_major_locator(MultipleLocator(step * unit))
        each.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for spine in each.spines.values():
            spine.set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    lines: Any = (
        ("What an optimizer needs besides the weights", {"fontsize": 12, "fontweight": "bold"}),
        (f"{dtype} parameters, {conditions()}", {}),
        (
            "state of a matrix of 1024 x 1024; of gradients and temporaries the most at one time, "
            "in eight layers of 512 x 512",
            {},
        ),
    )
    for (text, looks), points in zip(lines, TITLE_POINTS, strict=True):
        axes.annotate(
            text,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, points),
            textcoords="offset points",
            color=INK if looks else GREY,
            **looks,
        )


def _short(amount: float) -> str:
    return f"{amount:.2f}".rstrip("0").rstrip(".")
