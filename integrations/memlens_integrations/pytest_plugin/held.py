"""Which memory a test holds, of all that is there when it begins.

Tests share a process: caches and models that other tests have left behind are alive, and which they
are depends on which tests ran before. A test's figures must not. So of what was there before, that
counts which the test can reach: by its fixtures, its instance, its module, its local variables.
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
_RUNNERS = ("_pytest", "pytest", "pluggy", "xdist", "memlens", "memlens_integrations")
"""Packages whose objects lead to other tests."""


def roots_of(item: Any) -> list[Any]:
    """What a test was given: values of fixtures, its instance and class, names of its module."""
    roots = list((getattr(item, "funcargs", None) or {}).values())
    roots.append(getattr(item, "instance", None))
    for owner in getattr(getattr(item, "cls", None), "__mro__", ()):
        roots += vars(owner).values()
    module = getattr(item, "module", None) or types.SimpleNamespace()
    # Without `__builtins__`, which all modules share.
    return roots + [each for name, each in vars(module).items() if not name.startswith("__")]


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
        if id(item) in seen or isinstance(item, _NOT_FOLLOWED) or _is_a_runner(item):
            continue
        seen.add(id(item))
        kept.append(item)  # an id is that of one object only as long as it lives
        if issubclass(type(item), torch.Tensor):
            yield item
            if item.is_leaf and item.grad is not None:
                waiting.append(item.grad)
        if isinstance(item, types.FunctionType):
            # Not its globals: its module may have been imported by many.
            waiting += [item.__closure__, item.__defaults__, item.__kwdefaults__, vars(item)]
        elif gc.is_tracked(item) or isinstance(item, (types.CellType, functools.partial)):
            waiting += gc.get_referents(item)


def _is_a_runner(item: Any) -> bool:
    return type(item).__module__.partition(".")[0] in _RUNNERS
