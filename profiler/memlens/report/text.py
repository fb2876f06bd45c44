"""Text that comes from a job, made safe and short enough to show.

Module names, file names and command lines are whatever the job says: they may hold terminal
escapes, line breaks or half a surrogate pair. Nothing of that may reach a terminal, a table or a
web page.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memlens.answers import Frame

__all__ = ["count", "frame_text", "markdown", "plain", "shorten", "user_frames"]

# Categories of characters that act instead of being seen: controls, formats (among them the ones
# that turn the direction of text), surrogates, private use, unassigned, line and paragraph breaks.
_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}

_MARKDOWN_SPECIAL = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&:$\"']")

_PACKAGES = re.compile(r".*(?:site|dist)-packages/|.*/lib/python3\.\d+/")

# Frames of these carry a call along and say nothing about what it is for.
_PLUMBING = {"torch", "memlens", "<frozen runpy>"} | sys.stdlib_module_names

# Not the user's own code either, but what a model is made of can be in here. By name, because a
# recorded path is often relative to its entry in sys.path: "transformers/models/llama/...".
_LIBRARIES = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "diffusers",
    "galore_torch",
    "lightning",
    "lightning_fabric",
    "numpy",
    "peft",
    "pytorch_lightning",
    "timm",
    "torchao",
    "torchaudio",
    "torchrun",
    "torchtitan",
    "torchvision",
    "transformers",
    "trl",
}


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


def user_frames(stack: tuple[Frame, ...], limit: int) -> tuple[Frame, ...]:
    """The frames that tell a person what an allocation was for, innermost first.

    That is the innermost one that is not mere plumbing (of torch or the standard library), often a
    line of a library's model; and from there outwards the frames of the user's own code.
    """
    inner = list(reversed(stack))
    told = [frame for frame in inner if not _is_plumbing(frame)]
    own = [frame for frame in told if not _is_library(frame)]
    if not own:
        # With nothing else to show, plumbing is better than nothing.
        return tuple((told or inner)[:limit])
    return tuple([*(told[:1] if told[0] not in own else []), *own][:limit])


def frame_text(frame: Frame) -> str:
    """`train.py:12 main`, with a path just long enough to find the file."""
    short = "/".join(_slashes(frame.file).split("/")[-2:])
    return plain(f"{short}:{frame.line} {frame.function}")


def _is_plumbing(frame: Frame) -> bool:
    # A script of the user's that is named like a module of the standard library ("code.py") passes
    # for it when its path is relative; then the line below it in the stack is shown.
    return _package(frame.file) in _PLUMBING


def _is_library(frame: Frame) -> bool:
    return _PACKAGES.match(_slashes(frame.file)) is not None or _package(frame.file) in _LIBRARIES


def _package(file: str) -> str:
    """Top-level module of a file among the packages, or of a relative path; empty otherwise."""
    path = _slashes(file)
    if packages := _PACKAGES.match(path):
        path = path[packages.end() :]
    return path.split("/")[0].removesuffix(".py")


def _slashes(path: str) -> str:
    return path.replace("\\", "/")
