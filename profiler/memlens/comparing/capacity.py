"""The size of a device's memory, to be held against peaks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlens.errors import UsageError
from memlens.report.text import plain
from memlens.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from memlens.comparing.results import PeakResult

__all__ = ["Capacity", "parse_capacity"]


@dataclass(frozen=True)
class Capacity:
    """A line in the chart, and a verdict on every variant in the table."""

    label: str
    """What has this much memory; empty: nothing to say but the size."""
    size_bytes: int

    @property
    def shown(self) -> str:
        """`RTX 4090 (22.35 GiB)`."""
        size = format_bytes(self.size_bytes)
        return f"{plain(self.label)} ({size})" if self.label else size

    def fits(self, peak: PeakResult) -> bool:
        """Whether what was allocated at a peak is no more than this.

        It is necessary, not sufficient: the allocator's slack and the device's context come on top.
        """
        return peak.allocated_bytes <= self.size_bytes


def parse_capacity(text: str) -> Capacity:
    """Read `SIZE[:LABEL]`: `24GB:"RTX 4090"`, `24GB:RTX 4090`, `24GiB`.

    Without a label, a size in decimal units is its own (`24GB (22.35 GiB)`), since all sizes are
    shown in binary ones.

    Raises:
        UsageError: it is not written like this, or is no memory at all.
    """
    size, _, rest = text.partition(":")
    size, label = size.strip(), rest.strip()
    if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'":
        label = label[1:-1].strip()
    try:
        size_bytes = parse_bytes(size)
    except UsageError as error:
        raise UsageError(f'{error}; a capacity is SIZE:"LABEL", such as 24GB:"RTX 4090"') from None
    if size_bytes == 0:
        raise UsageError(f"a capacity of no bytes: {text!r}; write one such as 24GB")
    if not label and not re.search("[kmgt]ib$", size, re.IGNORECASE):
        label = size
    return Capacity(label, size_bytes)
