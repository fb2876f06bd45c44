"""Keeps answers small: a page over a slow line has to come up, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["MOST_BYTES", "Json", "brief", "dump", "within"]

Json = dict[str, Any]

MOST_BYTES = 195_000
"""Of an answer, before it is compressed."""
MOST_CHARACTERS = 300
"""Of a name; longer ones are no names, and would fill the answer."""


def dump(answer: Json) -> bytes:
    """As it goes out."""
    return json.dumps(answer, separators=(",", ":")).encode("ascii")


def within(build: Callable[[int], Json], count: int) -> Json:
    """The longest answer that is not too large.

    Args:
        build: makes one of so many entries.
        count: how many there should be.
    """
    while True:
        answer = build(count)
        size_bytes = len(dump(answer))
        if size_bytes <= MOST_BYTES or count <= 1:
            return answer
        count = max(min(count - 1, int(count * 0.95 * MOST_BYTES / size_bytes)), 1)


def brief(text: str) -> str:
    """A name of the job's, cut in the middle if it is none."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:99]}…{text[100 - MOST_CHARACTERS :]}"
