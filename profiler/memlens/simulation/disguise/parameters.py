"""Parameters of classes of their own over tensors without data, such as bitsandbytes' quantised ones.

A tensor without data is of one class already, and torch gives it no second one. Here it gets a class
that is both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memlens.simulation.backend import FakeTensor

__all__ = ["allow_subclasses"]

_Tensor: Any = torch.Tensor


def allow_subclasses() -> None:
    """Let such parameters be made, and be given other data, for the life of the process."""
    make: Callable[..., Any] = _Tensor._make_subclass
    plain: Any = _Tensor.data

    def _make_subclass(cls: type, data: Any, require_grad: bool = False, **settings: Any) -> Any:
        if not isinstance(data, FakeTensor) or issubclass(cls, FakeTensor) or settings:
            return make(cls, data, require_grad, **settings)
        made: Any = _Tensor.detach(data)
        made.__class__ = _both(cls)
        return made.requires_grad_(require_grad)

    def set_data(tensor: Any, value: Any) -> None:
        # Torch refuses to put one on another device, or one without data where there was some.
        if not isinstance(value, FakeTensor):
            plain.__set__(tensor, value)
            return
        if not isinstance(tensor, FakeTensor):
            tensor.__class__ = FakeTensor if type(tensor) is _Tensor else _both(type(tensor))
        elif tensor.fake_device == value.fake_device:
            plain.__set__(tensor, value)
            return
        new: Any = _Tensor.detach(value).requires_grad_(tensor.requires_grad)
        tensor.__dict__.update(new.__dict__)
        torch._C._swap_tensor_impl(tensor, new)

    _Tensor._make_subclass = staticmethod(_make_subclass)
    _Tensor.data = property(plain.__get__, set_data)


_made: dict[Any, Any] = {}


def _both(cls: Any) -> Any:
    if cls in _made:
        return _made[cls]
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "detach": _detach}
    both = _made[cls] = type(cls.__name__, (cls, FakeTensor), names)
    return both


def _detach(tensor: Any) -> Any:
    """Modules that move make a `Parameter` of this, and take its class and attributes for their own."""
    made: Any = _Tensor.detach(tensor)
    made.__class__ = type(tensor)
    for name, value in tensor.__dict__.items():
        made.__dict__.setdefault(name, value)
    return made
