"""The stacks of a snapshot, each distinct one once: entries by the thousand share few of them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from memlens.recording.names import Names

__all__ = ["Frame", "Stacks", "backward_name", "is_python", "job_frame", "short_native"]

MOST_FRAMES = 512
"""Innermost ones that are looked at of a stack; a recursion can have any number."""
MOST_KEPT_FRAMES = 100
MOST_NATIVE_FRAMES = 12
MOST_NAME = 2000

_SKIPPED = (
    "torch::unwind",
    "torch::CapturedTraceback",
    "gather_with_cpp",
    "c10::",
    "at::detail::",
    "wrap_kernel_functor",
)
"""C++ frames of the recording, the allocator and the dispatcher: the same in every stack."""
_BACKWARD = re.compile(r"autograd::generated::\w+::apply|autograd::(AccumulateGrad|CopySlices)")
_LIBRARY = re.compile(r"(site|dist)-packages/|/lib/python3\.\d+/|(^|/)torch/|^<")


class Frame(NamedTuple):
    """One call."""

    name: str
    filename: str
    line: int


class Stacks:
    """Numbers stacks; the same frames, the same number."""

    def __init__(self) -> None:
        self.known: list[tuple[Frame, ...]] = [()]
        """Frames by number, innermost first. 0 is the empty stack."""
        self._frames: dict[int, Frame] = {}
        self._by_list: dict[int, int] = {}
        self._by_frames: dict[tuple[int, ...], int] = {(): 0}

    def number(self, told: list[Any]) -> int:
        """Number a list of frames.

        Lists and frames are known by their addresses, so what holds them has to stay alive as long as
        stacks are numbered. Each is looked at once: a small file can name one of them very often.

        Raises:
            ValueError: one of them is no frame.
        """
        number = self._by_list.get(id(told))
        if number is None:
            key = tuple(map(id, told[:MOST_FRAMES]))
            number = self._by_frames.get(key)
            if number is None:
                self.known.append(tuple(map(self._frame, told[:MOST_FRAMES])))
                number = self._by_frames[key] = len(self.known) - 1
            self._by_list[id(told)] = number
        return number

    def _frame(self, told: Any) -> Frame:
        frame = self._frames.get(id(told))
        if frame is None:
            if not isinstance(told, dict):
                raise ValueError("a frame is no dictionary")
            name, filename, line = (told.get(key) for key in ("name", "filename", "line"))
            if not (isinstance(name, str) and isinstance(filename, str) and type(line) is int):
                raise ValueError("a frame lacks name, filename or line")
            frame = self._frames[id(told)] = Frame(_text(name), _text(filename), line)
        return frame

    def write(self, names: Names) -> list[int]:
        """Hand out the numbers that stacks have on disk, in the order of ours."""
        return [_write(frames, names) for frames in self.known]


def _text(value: str) -> str:
    # What has no UTF-8 form (half of a surrogate pair) cannot be stored.
    return value[:MOST_NAME].encode("utf-8", "replace").decode()


def is_python(frame: Frame) -> bool:
    """Whether a frame is of Python; others are C++."""
    return frame.filename.endswith(".py") or frame.filename.startswith("<")


def job_frame(frames: tuple[Frame, ...]) -> Frame | None:
    """The innermost frame that is not of a library."""
    for frame in frames:
        if is_python(frame) and not _LIBRARY.search(frame.filename.replace("\\", "/")):
            return frame
    return None


def short_native(name: str) -> str:
    """The name of a C++ function without its arguments: `torch::autograd::Engine::execute`."""
    name = name.replace("(anonymous namespace)", "{anonymous}").partition("(")[0]
    before = None
    while before != name:  # templates within templates
        before, name = name, re.sub(r"<[^<>]*>", "", name)
    return (
        name.strip().rpartition(" ")[2] or before or "?"
    )  # a template's name begins with its type


def backward_name(frames: tuple[Frame, ...]) -> str:
    """Which node of the autograd graph asked, `BmmBackward0`; empty where no frame tells."""
    for frame in frames:
        if _BACKWARD.search(frame.name):
            return short_native(frame.name).removesuffix("::apply").rpartition("::")[2]
    return ""


def _native_file(filename: str) -> str:
    return "C++" if filename in ("", "??") else filename


def _write(frames: tuple[Frame, ...], names: Names) -> int:
    """Python's frames; where there are none, those of C++ that tell something."""
    kept = [frame for frame in frames if is_python(frame)][:MOST_KEPT_FRAMES]
    if not kept:
        native = [f for f in frames if not any(word in f.name for word in _SKIPPED)]
        # What of backward it was stands some frames out, behind kernels and their wrappers.
        begin = next((place for place, f in enumerate(native) if _BACKWARD.search(f.name)), 0)
        kept = [
            Frame(short_native(frame.name), _native_file(frame.filename), frame.line)
            for frame in native[begin : begin + MOST_NATIVE_FRAMES]
        ]
    number = -1
    for frame in reversed(kept):
        number = names.frame(number, frame.name, frame.filename, frame.line)
    return number
