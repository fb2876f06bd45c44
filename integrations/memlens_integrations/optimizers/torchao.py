"""Optimizers of torchao, whose moments are quantised tensor subclasses.

They step through `torch.compile`. On a CPU that takes a C++ compiler and tens of seconds, so there they
run eagerly, by torch's own switch for that; on other devices they are compiled as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torchao.optim

from memlens.errors import UsageError
from memlens.variants.parameters import names_of
from memlens.variants.request import Request

__all__ = ["make", "unquantised"]

_NAMED = 5
"""So many tensors are named in a note; the others are counted."""


def unquantised(optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameters whose moments have the parameter's own precision: name and shape of each.

    The library quantises nothing smaller than 4096 elements, and nothing that its blocks do not
    divide. There are moments only after the first step.
    """
    found = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if type(optimizer.state.get(parameter, {}).get("exp_avg")) is torch.Tensor
    ]
    names = names_of(found)
    return [f"{names.get(id(each), 'a parameter')} {tuple(each.shape)}" for each in found]


class _Eager:
    """What an optimizer of torchao gets in addition, put before its class."""

    param_groups: list[dict[str, Any]]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the library's; on the CPU without compiling."""
        for group in self.param_groups:
            # A job that sets `group["lr"]` itself would be turned away: the library wants a tensor.
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] = torch.tensor(float(group["lr"]))
        library: Callable[..., Any] = super().step  # type: ignore[misc]
        if any(
            each.device.type != "cpu" for group in self.param_groups for each in group["params"]
        ):
            return library(closure)
        with torch.compiler.set_stance("force_eager"):
            return library(closure)

    @property
    def memlens_notes(self) -> list[str]:
        """One sentence, if the state of some tensors is not quantised."""
        assert isinstance(self, torch.optim.Optimizer)
        left = unquantised(self)
        if not left:
            return []
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        return [f"torchao does not quantise the state of {', '.join(left[:_NAMED])}{more}"]


@cache
def _with_eager(kind: type[torch.optim.Optimizer]) -> Any:
    return type(kind.__name__, (_Eager, kind), {"__doc__": kind.__doc__})


def make(request: Request) -> torch.optim.Optimizer:
    """`adam8bit-torchao`, `adamw8bit-torchao`, `adamw4bit` and `adamw-fp8` of the catalogue.

    Raises:
        UsageError: this version of torchao lacks the optimizer.
    """
    name = request.fixed["kind"]
    kind = getattr(torchao.optim, name, None)
    if kind is None:
        raise UsageError(f"this version of torchao has no torchao.optim.{name}; update it")
    optimizer: torch.optim.Optimizer = _with_eager(kind)(request.groups, **request.hyper)
    return optimizer
