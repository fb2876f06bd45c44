"""What was measured of each row: `measured.json`, written by `tools/measure_optimizers.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "FILE",
    "Measured",
    "conditions",
    "device",
    "failure",
    "measured",
    "read_figures",
    "torch_version",
    "versions",
]

FILE = Path(__file__).with_name("measured.json")

_ELEMENTS = {"matrix": 1024 * 1024, "vector": 8192}
_STACK_ELEMENTS = 8 * (512 * 512 + 512)


@dataclass(frozen=True)
class Measured:
    """Figures of one row for parameters of one dtype, in bytes per parameter.

    State: of one matrix of 1024 x 1024 and one vector of 8192. The others: of a stack of eight layers
    of 512 x 512 weights and 512 biases.
    """

    weight: float
    """Of the model as it is trained: some rows cast it."""
    matrix_state: float
    vector_state: float
    master_weight: float
    gradient: float
    """Retained when `step()` begins; the most at one time where none are retained."""
    temporary: float
    """The most that `step()` holds at a time besides."""
    no_retain_gradient: float | None
    """The most gradients at one time, when updating within backward; None: it cannot."""
    no_retain_temporary: float | None

    def state(self, shape: str) -> float:
        """Of a `matrix` or a `vector`."""
        return self.matrix_state if shape == "matrix" else self.vector_state


def read_figures(figures: Mapping[str, Any]) -> Measured:
    """Figures of one dtype, from the bytes that `memlens.variants.measure` prints."""
    stack, layerwise = figures["stack"], figures.get("no_retain_grad")
    return Measured(
        weight=stack["weight"] / _STACK_ELEMENTS,
        matrix_state=figures["matrix"]["optimizer_state"] / _ELEMENTS["matrix"],
        vector_state=figures["vector"]["optimizer_state"] / _ELEMENTS["vector"],
        master_weight=figures["matrix"]["master_weight"] / _ELEMENTS["matrix"],
        gradient=stack["gradient"] / _STACK_ELEMENTS,
        temporary=stack["optimizer_temporary"] / _STACK_ELEMENTS,
        no_retain_gradient=layerwise and layerwise["gradient"] / _STACK_ELEMENTS,
        no_retain_temporary=layerwise and layerwise["optimizer_temporary"] / _STACK_ELEMENTS,
    )


@cache
def _file() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def measured(name: str, dtype: str) -> Measured | None:
    """What was measured of a row with parameters of `fp32` or `bf16`; None: nothing."""
    row = _file()["rows"].get(name, {})
    return read_figures(row[dtype]) if dtype in row else None


def failure(name: str) -> str:
    """Why a row could not be measured; empty: it was, or nobody has tried."""
    return str(_file()["rows"].get(name, {}).get("failed", ""))


def conditions() -> str:
    """With what it was measured, in a line."""
    return f"measured on the {device()} with torch {torch_version()}"


def device() -> str:
    """On which kind of device it was measured."""
    return str(_file()["device"])


def torch_version() -> str:
    """With which torch it was measured."""
    return str(_file()["torch"])


def versions(name: str) -> dict[str, str]:
    """The versions of a row's libraries when it was measured."""
    return dict(_file()["rows"].get(name, {}).get("libraries", {}))
