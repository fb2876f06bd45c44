"""Names of variants, which are as long as their options, made to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells

__all__ = ["share_width", "wrap_name"]

# Where a name may go on in a new line: between options, or if they are too long themselves, within.
# It never loses a part, since two variants often differ in one option only.
_BREAKS = (re.compile(r"[^:,+/ ]*[:,+/ ]?"), re.compile(r"[^-_=.]*[-_=.]?"))


def wrap_name(name: str, width: int) -> list[str]:
    """Break a name into lines of at most `width` terminal columns."""
    lines: list[str] = []
    for part in _parts(name, width, 0):
        if lines and cell_len((lines[-1] + part).rstrip()) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return [line.rstrip() for line in lines] or [""]


def _parts(text: str, width: int, level: int) -> list[str]:
    if cell_len(text.rstrip()) <= width and level:
        return [text]
    if level == len(_BREAKS):
        return chop_cells(text, width)
    found = filter(None, _BREAKS[level].findall(text))
    return [piece for part in found for piece in _parts(part, width, level + 1)]


def share_width(names: Sequence[str], least: int, room: int) -> list[int]:
    """Give columns that are headed by names what room there is, the ones that need it most first.

    Args:
        names: the heads.
        least: width of every column at least.
        room: for all of them together.

    Returns:
        The width of each column.
    """
    widths = [least] * len(names)
    for _ in range(room - sum(widths)):
        lines = [len(wrap_name(name, width)) for name, width in zip(names, widths, strict=True)]
        if max(lines) == 1:
            break
        widths[lines.index(max(lines))] += 1
    return widths
