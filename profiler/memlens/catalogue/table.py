"""Every optimizer that memlens knows: one row each, in the order of `memlens optimizers`."""

from __future__ import annotations

from difflib import get_close_matches

from memlens.catalogue.row import Row
from memlens.catalogue.rows import factored, low_bit, low_rank, others, plain, reuse
from memlens.errors import UsageError

__all__ = ["CATALOGUE", "find"]

CATALOGUE: dict[str, Row] = {
    row.name: row
    for rows in (
        plain.ROWS,
        low_bit.ROWS,
        factored.ROWS,
        low_rank.ROWS,
        reuse.ROWS,
        others.ROWS,
    )
    for row in rows
}


def find(name: str) -> Row:
    """The row of a name.

    Raises:
        UsageError: there is none; the text names those that look alike.
    """
    row = CATALOGUE.get(name)
    if row is None:
        close = get_close_matches(name, CATALOGUE, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`memlens optimizers` lists them"
        raise UsageError(f"no optimizer {name!r} in the catalogue; {hint}")
    return row
