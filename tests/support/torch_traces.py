"""Histories of torch's CUDA allocator, as the columns that a capture has."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memlens.disk.format import codes
from memlens.events import Action

SNAPSHOTS = Path(__file__).resolve().parents[2] / "../shared/snapshots"
ACTION = codes(Action)


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def recorded(name: str) -> dict[str, Any]:
    """A snapshot of a real allocator; the test is skipped where there is none."""
    path = SNAPSHOTS / f"{name}.pickle"
    if not path.is_file():
        pytest.skip("no recorded snapshots here")
    with path.open("rb") as file:
        snapshot: dict[str, Any] = _DataOnly(file).load()
    return snapshot


def joined(*parts: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Histories one after the other, of the columns that all of them have."""
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in shared}
