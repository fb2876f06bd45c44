"""What a job asks for when it constructs an optimizer, in words that every optimizer understands."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from memlens.errors import UsageError

__all__ = ["Request", "read_construction"]

Group = dict[str, Any]

_PARAMS_ELSEWHERE = ("model_params",)
"""What DeepSpeed's optimizers for the CPU call them."""
DEFAULT_LR = 1e-3
"""What torch's Adam takes when a job names none."""


@dataclass
class Request:
    """Parameters in groups, and hyperparameters by name.

    What makes an optimizer from it (`memlens.catalogue.row.Row.home`) is either a class, called with
    groups and hyperparameters, or a function of an adapter, called with this.
    """

    groups: list[Group]
    """Each holds `params`, a list of tensors, and the hyperparameters that differ in this group."""
    hyper: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of all groups, of those that the row takes; `lr` is always there."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """What the row fixes."""
    options: dict[str, Any] = field(default_factory=dict)
    """The row's options: its defaults, and what was given in their place."""
    rest: type[torch.optim.Optimizer] = torch.optim.AdamW
    """Takes the parameters that the optimizer cannot."""

    def parameters(self) -> list[torch.Tensor]:
        """All of them."""
        return [parameter for group in self.groups for parameter in group["params"]]

    def split(self, chosen: Iterable[torch.Tensor]) -> tuple[list[Group], list[Group]]:
        """The groups cut in two: those with the chosen parameters, and those with the others.

        Returns:
            Two lists of groups; empty groups are left out.
        """
        ids = {id(parameter) for parameter in chosen}
        parts: tuple[list[Group], list[Group]] = ([], [])
        for group in self.groups:
            for part, wanted in zip(parts, (True, False), strict=True):
                params = [each for each in group["params"] if (id(each) in ids) is wanted]
                if params:
                    part.append({**group, "params": params})
        return parts


def read_construction(
    kind: type[torch.optim.Optimizer], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Request:
    """Read a call such as `AdamW(model.parameters(), lr=1e-4)`; all hyperparameters are kept.

    Raises:
        UsageError: the call does not begin with parameters, as those of torch's optimizers do.
    """
    try:
        # Of the constructor that the class defines itself: a session may have wrapped the base's.
        bound = inspect.signature(kind.__init__).bind(None, *args, **kwargs).arguments
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"cannot replace {kind.__name__}: its call does not fit its signature ({error})"
        ) from None
    bound.update(bound.pop("kwargs", {}))
    for other in _PARAMS_ELSEWHERE:
        if other in bound:
            bound["params"] = bound.pop(other)
    params = bound.get("params")
    if params is None:
        raise UsageError(
            f"cannot replace {kind.__name__}: it is not constructed from `params`, as torch's "
            "optimizers are; construct a torch.optim class in the job, or compare without it"
        )
    bound.pop("self", None)
    del bound["params"]
    hyper = {name: value for name, value in bound.items() if value is not None}
    hyper.setdefault("lr", _default_lr(kind))
    return Request(_groups(params), hyper)


def _default_lr(kind: type[torch.optim.Optimizer]) -> Any:
    parameter = inspect.signature(kind.__init__).parameters.get("lr")
    default = None if parameter is None else parameter.default
    return DEFAULT_LR if default in (None, inspect.Parameter.empty) else default


def _groups(params: Any) -> list[Group]:
    """Groups of lists of tensors, from all that torch's optimizers take."""
    if isinstance(params, torch.Tensor):
        raise UsageError("an optimizer takes an iterable of tensors, not one tensor")
    items = list(params)
    if not items:
        raise UsageError("the job's optimizer got an empty parameter list")
    if not isinstance(items[0], dict):
        items = [{"params": items}]
    groups = []
    for item in items:
        group = dict(item)
        held = group["params"]
        held = [held] if isinstance(held, torch.Tensor) else list(held)
        # Named parameters, as `model.named_parameters()` gives them.
        group["params"] = [each[1] if isinstance(each, tuple) else each for each in held]
        groups.append(group)
    return groups
