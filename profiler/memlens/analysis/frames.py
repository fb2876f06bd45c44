"""Which frames of a stack tell a person where an allocation was made."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memlens.answers import Frame

__all__ = ["job_frame", "slashes", "user_frames"]

# The last two are memlens' own source roots, for when it is installed in place.
_PACKAGES = re.compile(
    r".*(?:site|dist)-packages/|.*/lib/python3\.\d+/"
    r"|.*/profiler/(?=memlens/)|.*/integrations/(?=memlens_integrations/)"
)

# Frames of these carry a call along and say nothing about what it is for.
_PLUMBING = {
    "torch",
    "memlens",
    "memlens_integrations",
    "<frozen runpy>",
} | sys.stdlib_module_names

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


def job_frame(stack: tuple[Frame, ...]) -> Frame | None:
    """The innermost line of the job's own code; of a library's model where there is none, else None."""
    told = [frame for frame in reversed(stack) if not _is_plumbing(frame)]
    return next((frame for frame in told if not _is_library(frame)), told[0] if told else None)


def slashes(path: str) -> str:
    """A path with forward slashes, whichever system it was recorded on."""
    return path.replace("\\", "/")


def _is_plumbing(frame: Frame) -> bool:
    # A script of the user's that is named like a module of the standard library ("code.py") passes
    # for it when its path is relative; then the line below it in the stack is shown.
    return _package(frame.file) in _PLUMBING


def _is_library(frame: Frame) -> bool:
    return _PACKAGES.match(slashes(frame.file)) is not None or _package(frame.file) in _LIBRARIES


def _package(file: str) -> str:
    """Top-level module of a file among the packages, or of a relative path; empty otherwise."""
    path = slashes(file)
    if packages := _PACKAGES.match(path):
        path = path[packages.end() :]
    return path.split("/")[0].removesuffix(".py")
