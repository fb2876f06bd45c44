"""From a variant and what a job asks for to an optimizer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from memlens.catalogue.row import Row
from memlens.catalogue.table import find
from memlens.catalogue.variant import Variant
from memlens.errors import MissingDependencyError, UsageError
from memlens.variants.precision import cast_models
from memlens.variants.request import Request

__all__ = ["build"]

_COMMON = ("lr", "lr_scale")


def build(variant: Variant, asked: Request) -> torch.optim.Optimizer:
    """Make the optimizer of a variant for the parameters that a job hands over.

    Hyperparameters that the row does not take are dropped, in groups too. The learning rate is the
    job's, times the row's `lr_scale`; the options `lr` and `lr_scale` override that.

    Raises:
        MissingDependencyError: its library is not installed.
        UsageError: it cannot train these parameters.
    """
    row = variant.row
    assert row is not None, "the job's own optimizer is not built"
    home = _home(row)
    if row.precision != "job":
        cast_models(asked.parameters(), torch.bfloat16)
    request = _translate(row, variant, asked)
    if isinstance(home, type):
        arguments = {**request.hyper, **request.fixed, **request.options}
        optimizer = home(request.groups, **arguments)
    else:
        optimizer = home(request)
    if variant.no_retain_grad:
        from memlens.optim.in_backward import StepInBackward

        optimizer = StepInBackward(optimizer)
    return _checked(row, optimizer)


def _checked(row: Row, optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"{row.home} made no torch.optim.Optimizer for {row.name}")
    return optimizer


def _translate(row: Row, variant: Variant, asked: Request) -> Request:
    options = {**row.options, **variant.options}
    scale = row.lr_scale
    if given := variant.options.get("lr_scale"):
        scale = float(str(given))

    def rate(value: Any) -> Any:
        if chosen := variant.options.get("lr"):
            return float(str(chosen))
        return value * scale

    def taken(values: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in values.items() if name in row.takes}
        if "lr" in kept:
            kept["lr"] = rate(kept["lr"])
        return kept

    return Request(
        groups=[{"params": group["params"], **taken(group)} for group in asked.groups],
        hyper=taken(asked.hyper),
        fixed=dict(row.fixed),
        options={name: value for name, value in options.items() if name not in _COMMON},
        rest=_home(find(row.rest)) if row.rest else torch.optim.AdamW,
    )


def _home(row: Row) -> Any:
    module, _, attribute = row.home.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        if row.extra and package != "memlens_integrations":
            raise MissingDependencyError(package, f"run {row.name}", row.extra) from error
        raise
    except AttributeError:
        raise UsageError(
            f"{row.name} cannot run: this version of {module} has no {attribute}; update it"
        ) from None
