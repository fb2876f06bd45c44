"""The values of tensors that have no data: of some they are known, of the others a stand-in is given.

Known are small tensors that came from the host or were made from numbers, and what is computed from
such alone: token ids, masks, positions. They are computed beside, on the CPU. So a mask's `.all()` is
the right one, and a boolean index has the right number of elements.

Of all others nothing is known: `loss.item()` is a stand-in, which is noted, with its line. A number
that is a stand-in must not become a shape, so integers are given as `StandIn`.
"""

from __future__ import annotations

import numbers
import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["MOST_BYTES", "StandIn", "Values", "stand_in"]

MOST_BYTES = 1 << 20
"""Values of larger tensors are not kept; host tensors of more are made without data."""
_ATTRIBUTE = "_memlens_value"


class Values:
    """Keeps the values beside the tensors, as an attribute of theirs.

    A view's value is a view of its base's value, so that what changes one changes the other.
    """

    def __init__(self) -> None:
        self._lost: dict[int, weakref.ref[Any]] = {}
        """Storages of values that something unknown was written into."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What a tensor holds, if that is known."""
        value: torch.Tensor | None = tensor.__dict__.get(_ATTRIBUTE)
        if value is not None and self._lost and value.untyped_storage()._cdata in self._lost:
            return None
        return value

    def set(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Keep what a tensor holds, unless that is large."""
        if value.nbytes <= MOST_BYTES:
            setattr(tensor, _ATTRIBUTE, value)

    def lose(self, tensor: torch.Tensor) -> None:
        """Something unknown is written into a tensor."""
        value: torch.Tensor | None = tensor.__dict__.pop(_ATTRIBUTE, None)
        if value is not None:
            storage = value.untyped_storage()
            key, lost = storage._cdata, self._lost
            lost[key] = weakref.ref(storage, lambda _: lost.pop(key, None))


def stand_in(dtype: torch.dtype) -> Any:
    """What is given for an element that is not known."""
    if dtype is torch.bool:
        return False
    if dtype.is_complex:
        return complex(1.0)
    return 1.0 if dtype.is_floating_point else 1


class StandIn:
    """An integer that stands for a value of a tensor without data.

    It counts, compares and prints, and stays what it is through arithmetic; but where Python or torch
    wants an index or a size, it says that it is none.
    """

    __slots__ = ("refuse", "value")

    def __init__(self, value: int, refuse: Callable[[], Exception]) -> None:
        self.value = value
        self.refuse = refuse

    def __index__(self) -> int:
        """An index or a size would be made up."""
        raise self.refuse()

    def __int__(self) -> int:
        return self.value

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


numbers.Number.register(StandIn)


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def forward(self: StandIn, *others: Any) -> Any:
        return _again(self, function(self.value, *map(_plain, others)))

    return forward


def _reflected(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)
    return lambda self, other: _again(self, function(other, self.value))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StandIn) else value


def _again(origin: StandIn, result: Any) -> Any:
    return StandIn(result, origin.refuse) if type(result) is int else result


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(StandIn, f"__{_name}__", _operator(_name))
    setattr(StandIn, f"__r{_name}__", _reflected(_name))
for _name in ("neg", "abs", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(StandIn, f"__{_name}__", _operator(_name))
