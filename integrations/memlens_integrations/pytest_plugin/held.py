"""Which memory a test holds, of all that is there when it begins.

Tests share a process: caches and models that other tests have left behind are alive, and which they
are depends on which tests ran before. A test's figures must not. So of what was there before, that
counts which the test can reach: by its fixtures, its instance, what it and the functions that it
calls name, its local variables.
"""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from memlens.recording.storages import storages

__all__ = ["held_addresses", "roots_of"]

_NOT_FOLLOWED = (type, types.ModuleType, types.FrameType, types.CodeType, types.BuiltinFunctionType)
"""They lead to everything."""
_RUNNERS = (
    "_pytest.",
    "pluggy.",
    "xdist.",
    "memlens.recording.",
    "memlens_integrations.pytest_plugin.",
)
"""Packages whose objects lead to other tests."""


def roots_of(item: Any) -> list[Any]:
    """What a test was given: values of fixtures, its instance, itself, and what it uses of its class."""
    function = getattr(item, "function", None)
    roots = [*(getattr(item, "funcargs", None) or {}).values(), getattr(item, "instance", None)]
    return [*roots, function, *_of_class(getattr(item, "cls", None), function)]


def _of_class(cls: type | None, function: Any) -> Iterator[Any]:
    """Attributes of a test's class that the test names, or a method that it names."""
    attributes = {
        name: value
        for owner in reversed(getattr(cls, "__mro__", ()))
        for name, value in vars(owner).items()
    }
    waiting = [function]
    seen: set[str] = set()
    while waiting:
        code = getattr(waiting.pop(), "__code__", None)
        for name in _names(code) & attributes.keys() - seen if code else ():
            seen.add(name)
            waiting.append(attributes[name])
            yield attributes[name]


def _names(code: types.CodeType) -> set[str]:
    """Globals and attributes that a function and those within it use."""
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def held_addresses(roots: Iterable[Any]) -> set[int]:
    """Where the storages begin that can be reached from some objects, on any device."""
    found: set[int] = set()
    for tensor in _tensors(roots):
        for _, address, _, _ in storages(tensor, tensor.device.type):
            found.add(address)
    return found


def _tensors(roots: Iterable[Any]) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    waiting = list(roots)
    kept: list[Any] = []
    while waiting:
        item = waiting.pop()
        kind = type(item)  # isinstance would ask proxies for their class and run code of theirs
        if id(item) in seen or issubclass(kind, _NOT_FOLLOWED) or _is_a_runner(kind):
            continue
        seen.add(id(item))
        kept.append(item)  # an id is that of one object only as long as it lives
        if issubclass(kind, torch.Tensor):
            yield item
            waiting.append(_gradient_of(item))
        if kind is types.FunctionType:
            # Of its globals, what it uses: the tests of a module share them all.
            waiting += [item.__closure__, item.__defaults__, item.__kwdefaults__, vars(item)]
            used = _names(item.__code__) & item.__globals__.keys()
            waiting += [item.__globals__[name] for name in used if name != "__builtins__"]
        elif gc.is_tracked(item) or kind in (types.CellType, functools.partial):
            waiting += gc.get_referents(item)


def _gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    try:
        return tensor.grad if tensor.is_leaf else None
    except RuntimeError:  # a view of what was changed since, which torch will not tell of
        return None


def _is_a_runner(kind: type) -> bool:
    return f"{kind.__module__}.".startswith(_RUNNERS)
