"""What the bar charts share: how a figure becomes a file, and what is written on its bars.

Draws on figures of its own and not through pyplot, so a program that draws from a notebook finds
its current figure and backend as they were.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlens.errors import MissingDependencyError, UsageError

try:
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch
except ImportError as error:
    raise MissingDependencyError("matplotlib", "draw the chart", "chart") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.text import Text

    from memlens.palette import Series

__all__ = [
    "BAR_HEIGHT",
    "FAINT",
    "GREY",
    "INK",
    "WIDTH_INCHES",
    "draw_legend",
    "draw_segment",
    "figure_bytes",
    "file_kind",
    "keep_if_it_fits",
    "make_figure",
]

INK, GREY, FAINT = "#333333", "#777777", "#DDDDDD"

_WHEN_DARK = """
@media (prefers-color-scheme: dark) {
path[style*="fill: #ffffff"] {fill: #17191c !important}
path[style*="stroke: #ffffff"] {stroke: #17191c !important}
[style*="fill: #333333"] {fill: #e4e4e4 !important}
[style*="stroke: #333333"] {stroke: #e4e4e4 !important}
[style*="fill: #777777"] {fill: #a6a6a6 !important}
[style*="stroke: #777777"] {stroke: #a6a6a6 !important}
[style*="stroke: #dddddd"] {stroke: #3c4046 !important}
}
"""
"""What an SVG looks like where its reader prefers dark pages: paper and inks change, and neither the
colours of categories nor what is written on them."""

WIDTH_INCHES = 11.0
DPI = 160
BAR_HEIGHT = 0.68
THIN = 0.004
"""A segment of less than this share of the axis has no white edge, which would cover it."""


def file_kind(path: Path) -> str:
    """`svg` or `png`, from the ending of a file's name.

    Raises:
        UsageError: it is another one.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise UsageError(f"cannot draw a chart as {path.name}; name it .svg or .png")
    return kind


def make_figure(height_inches: float) -> Figure:
    """An empty figure of the common width, which makes room for what stands outside of its axes."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    return Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout=layout)


def figure_bytes(draw: Callable[[], Figure], kind: str) -> bytes:
    """The content of an SVG or PNG.

    With one version of matplotlib, the same figure gives the same SVG, byte for byte.

    Args:
        draw: makes the figure; called with matplotlib's defaults and our few settings in force.
        kind: `svg` or `png`.
    """
    buffer = io.BytesIO()
    settings: Any = {
        "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
        "svg.hashsalt": "memlens",
        "font.family": ["DejaVu Sans", "sans-serif"],  # the latter for readers that lack it
        "font.size": 9,
    }
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # a style that the program around us has chosen is not for this
        rcParams.update(settings)
        # An SVG is drawn with the reader's fonts; in a PNG such a letter becomes a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw()
        metadata = (
            {"Date": None, "Creator": "memlens"} if kind == "svg" else {"Software": "memlens"}
        )
        figure.savefig(buffer, format=kind, metadata=metadata, facecolor="white")
    content = buffer.getvalue()
    if kind == "svg":
        content = content.replace(b"</style>", f"{_WHEN_DARK}</style>".encode(), 1)
    return content


def draw_segment(
    axes: Axes, row: int, left: float, size: float, colour: str, number: str
) -> tuple[Text, float]:
    """One segment of a stacked bar, with its number.

    Returns:
        The number's label and the width that it has; see `keep_if_it_fits`.
    """
    wide = size > axes.get_xlim()[1] * THIN
    axes.barh(
        row,
        size,
        left=left,
        height=BAR_HEIGHT,
        color=colour,
        edgecolor="white",
        linewidth=0.7 if wide else 0,
    )
    label = axes.text(
        left + size / 2,
        row,
        number,
        ha="center",
        va="center_baseline",
        fontsize=8,
        color=_on(colour),
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
    )
    return label, size


def draw_legend(figure: Figure, shown: Sequence[Series]) -> None:
    """Name the colours below the bars."""
    figure.legend(
        handles=[Patch(facecolor=each.colour, label=each.label) for each in shown],
        loc="outside lower center",
        ncols=len(shown) if len(shown) <= 6 else -(-len(shown) // 2),
        frameon=False,
        borderaxespad=0,
        handlelength=1.1,
        handleheight=1.1,
        labelcolor=INK,
    )


def keep_if_it_fits(axes: Axes, label: Text, size: float) -> None:
    """Remove a label that is wider than its segment; the figure must have been laid out."""
    start, end = axes.transData.transform([(0, 0), (size, 0)])[:, 0]
    if label.get_window_extent().width + 4 > end - start:
        label.remove()


def _on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#222222"
