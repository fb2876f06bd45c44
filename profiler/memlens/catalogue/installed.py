"""Which libraries a row needs, and which of them are not there. Imports none of them."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

from memlens.catalogue.row import Row

__all__ = ["libraries_of", "missing_libraries", "version_of"]


@cache
def libraries_of(extra: str) -> tuple[str, ...]:
    """The distributions that an extra of memlens installs, from memlens' own metadata."""
    if not extra:
        return ()
    wanted = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    required = metadata.requires("memlens") or []
    names = [re.match(r"[A-Za-z0-9_.-]+", line) for line in required if wanted.search(line)]
    return tuple(sorted(match[0] for match in names if match))


def missing_libraries(row: Row) -> list[str]:
    """Those of a row's libraries that this environment lacks."""
    return [name for name in libraries_of(row.extra) if version_of(name) is None]


def version_of(distribution: str) -> str | None:
    """The installed version of a library; None: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
