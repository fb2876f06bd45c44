"""How a category is shown: its label, colour, letter and place in a stack. Defined only here.

The terminal, the pictures and the web pages all read these, so that a colour means the same
everywhere. Most colours are those of Okabe and Ito; the rest were searched for so that any two stay
apart under the three common colour vision deficiencies, and on dark and light backgrounds alike
(`tests/unit/test_palette.py` holds that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memlens.events import ROLLUP, Category

__all__ = ["CATEGORY_SERIES", "ROLLUP_SERIES", "Series", "label", "series_of"]


@dataclass(frozen=True)
class Series:
    """One band of a stacked picture, or one row of a table: a category, or a sum of several."""

    key: str
    """The name that machines use: `optimizer_state`, or `Weight Gradient` when rolled up."""
    label: str
    """The name that people read."""
    colour: str
    """`#RRGGBB`."""
    letter: str
    """Stands for the colour where there is none."""
    members: tuple[Category, ...]

    def amount(self, categories: Mapping[Category, int]) -> int:
        """Bytes of this series in a mapping of categories; a missing category counts as 0."""
        return sum(categories.get(member, 0) for member in self.members)


def label(category: Category) -> str:
    """The name that people read: `optimizer state`."""
    return category.value.replace("_", " ")


# In stacking order, bottom first: what stays for the whole job lies below what comes and goes, so
# that the lower bands are flat and the eye can read the height of each.
_CATEGORY_LOOK: dict[Category, tuple[str, str]] = {
    Category.WEIGHT: ("#0072B2", "w"),
    Category.MASTER_WEIGHT: ("#425177", "m"),
    Category.OPTIMIZER_STATE: ("#E69F00", "o"),
    Category.GRADIENT: ("#009E73", "g"),
    Category.ACTIVATION: ("#56B4E9", "a"),
    Category.INPUT: ("#AEECF6", "i"),
    Category.COMMUNICATION: ("#F1EA46", "c"),
    Category.OPTIMIZER_TEMPORARY: ("#D55E00", "x"),
    Category.TEMPORARY: ("#DBBAAD", "t"),
    Category.WORKSPACE: ("#8B4305", "k"),
    Category.UNKNOWN: ("#6A6A6A", "?"),
}

# Each of the five wears the colour of its main category.
_ROLLUP_LOOK: dict[str, tuple[str, str]] = {
    "Weight": ("#0072B2", "w"),
    "Optimization": ("#E69F00", "o"),
    "Weight Gradient": ("#009E73", "g"),
    "Activation": ("#56B4E9", "a"),
    "Others": ("#6A6A6A", "."),
}

CATEGORY_SERIES: tuple[Series, ...] = tuple(
    Series(category.value, label(category), colour, letter, (category,))
    for category, (colour, letter) in _CATEGORY_LOOK.items()
)
"""Every category, in stacking order."""

ROLLUP_SERIES: tuple[Series, ...] = tuple(
    Series(name, name, colour, letter, ROLLUP[name])
    for name, (colour, letter) in _ROLLUP_LOOK.items()
)
"""The five published names, in stacking order."""


def series_of(rollup: bool) -> tuple[Series, ...]:
    """The series to show: every category, or the five published names."""
    return ROLLUP_SERIES if rollup else CATEGORY_SERIES
