"""Calls back when a module has been imported, for libraries that the job may import at any time."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]


def when_imported(name: str, call: Callable[[], None]) -> Callable[[], None]:
    """Call at once if the module is there, else as soon as its import is done.

    Args:
        name: of the module; of one that imports torch, a module that it imports after torch.
        call: what to do. If it raises, so does the import.

    Returns:
        What ends the wait, where it has not ended by itself.
    """
    if name in sys.modules:
        call()
        return lambda: None
    finder = _Finder(name, call)
    sys.meta_path.insert(0, finder)
    return finder.leave


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the others would, and goes when it has been imported."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._name = name
        self._call = call

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            found = finder.find_spec(name, path, target)
            if found is not None:
                self._follow(found.loader)
                return found
        return None

    def leave(self) -> None:
        """Look for it no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _follow(self, loader: Any) -> None:
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            original(module)
            if self in sys.meta_path:
                self.leave()
                self._call()

        loader.exec_module = exec_module
