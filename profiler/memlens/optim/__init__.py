"""Optimizers that need less memory than the originals, usable without the profiler.

    from memlens.optim import AdamWR
    optimizer = AdamWR(model.parameters(), lr=1e-3)

The names below are looked up when they are first used, so that this package can be imported
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["AdamWR", "AdanR", "LionR"]

_HOMES = {
    "AdamWR": "memlens.optim.adamw_r",
    "AdanR": "memlens.optim.adan_r",
    "LionR": "memlens.optim.lion_r",
}

if TYPE_CHECKING:
    from memlens.optim.adamw_r import AdamWR
    from memlens.optim.adan_r import AdanR
    from memlens.optim.lion_r import LionR


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'memlens.optim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
