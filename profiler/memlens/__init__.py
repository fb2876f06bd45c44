"""memlens: where does every byte of a training job go.

    with memlens.profile() as session:
        train()
    print(session.capture.ranks[0].peak())

Importing memlens imports neither torch nor anything else that is heavy; the names below are looked
up when they are first used.

Word to pytest, which would warn where we are imported before our plugin is: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Capture",
    "Category",
    "Certainty",
    "Comparison",
    "MemlensError",
    "Phase",
    "RankCapture",
    "Session",
    "__version__",
    "compare",
    "load",
    "profile",
    "scalars",
]

_HOMES = {
    "Capture": "memlens.capture",
    "Category": "memlens.events",
    "Certainty": "memlens.events",
    "Comparison": "memlens.comparing.results",
    "MemlensError": "memlens.errors",
    "Phase": "memlens.events",
    "RankCapture": "memlens.capture",
    "Session": "memlens.recording.session",
    "compare": "memlens.comparing.compare",
    "load": "memlens.capture",
    "profile": "memlens.recording.profile",
    "scalars": "memlens.live.scalars",
}

if TYPE_CHECKING:
    from memlens.capture import Capture, RankCapture, load
    from memlens.comparing.compare import compare
    from memlens.comparing.results import Comparison
    from memlens.errors import MemlensError
    from memlens.events import Category, Certainty, Phase
    from memlens.live.scalars import scalars
    from memlens.recording.profile import profile
    from memlens.recording.session import Session


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memlens' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
