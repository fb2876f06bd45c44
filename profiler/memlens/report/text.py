"""Text that comes from a job, made safe and short enough to show.

Module names, file names and command lines are whatever the job says: they may hold terminal
escapes, line breaks or half a surrogate pair. Nothing of that may reach a terminal, a table or a
web page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memlens.analysis.frames import slashes, user_frames

if TYPE_CHECKING:
    from memlens.answers import Frame

__all__ = ["count", "frame_text", "markdown", "named_ranks", "plain", "shorten", "user_frames"]

# Categories of characters that act instead of being seen: controls, formats (among them the ones
# that turn the direction of text), surrogates, private use, unassigned, line and paragraph breaks.
_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

MOST_NAMED = 8

_MARKDOWN_SPECIAL = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&:$\"']")


def plain(text: str) -> str:
    r"""Write every character that would act on a terminal as an escape such as `\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape", "surrogatepass").decode("ascii")
        if unicodedata.category(char) in _ACTING
        else char
        for char in text
    )


def markdown(text: str) -> str:
    """Escape text for a cell of a markdown table, where it must mean nothing but itself."""
    return _MARKDOWN_SPECIAL.sub(lambda match: f"&#{ord(match[0])};", plain(text))


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text that is too long: both ends of a dotted name say something."""
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    # The end of a module name or a path is the specific part, so it gets two thirds.
    head = (width - 1) // 3
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def count(number: int, noun: str) -> str:
    """`1 event`, `12,345 events`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def named_ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1, 2`; of very many, the first ones and how many more."""
    numbers = sorted(set(numbers))
    shown = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = len(numbers) - MOST_NAMED
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}" + (
        f" and {more:,} more" if more > 0 else ""
    )


def frame_text(frame: Frame) -> str:
    """`train.py:12 main`, with a path just long enough to find the file."""
    short = "/".join(slashes(frame.file).split("/")[-2:])
    return plain(f"{short}:{frame.line} {frame.function}")
