"""`memlens optimizers --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memlens.report.optimizers.view import OptimizerView

__all__ = ["optimizers_payload"]


def optimizers_payload(views: Sequence[OptimizerView]) -> dict[str, Any]:
    """One object; every figure is in bytes per parameter.

    `measured` is null where nothing was, and `failure` then says why. Within it, `fp32` and `bf16`
    hold the fields of `memlens.catalogue.measured.Measured`.
    """
    return {"unit": "bytes per parameter", "optimizers": [_optimizer(view) for view in views]}


def _optimizer(view: OptimizerView) -> dict[str, Any]:
    row = asdict(view.row)
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in row.items()},
        "libraries": view.home.split(", "),
        "missing_libraries": list(view.missing),
        "install": view.install or None,
        "measured": None
        if not view.figures
        else {
            "device": view.device,
            "torch": view.torch,
            "libraries": dict(view.libraries),
            "now": view.fresh,
            **{dtype: asdict(figures) for dtype, figures in view.figures.items()},
        },
        "failure": view.failure or None,
    }
