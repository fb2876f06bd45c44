"""Starts a session in a process of the job, as soon as that imports torch.

Which processes are recorded: a script that `memlens run` became, always; any other process once it
turns out to train a model (a module with parameters, a backward, an optimizer). Launchers never do.
DataLoader workers may call modules, and say themselves that they are workers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from memlens.launch.environment import MAIN_PID, RUN

__all__ = ["begin"]


def begin() -> None:
    """Wait for torch; called when the interpreter starts."""
    if os.environ.get("MEMLENS_DISABLE"):
        return
    if "torch" in sys.modules:
        _torch_is_there()
    else:
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Finds torch as the others would, and calls us when its import is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            found = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if found is not None:
                if found.loader is not None:
                    found.loader = _TorchLoader(found.loader)
                return found
        return None


class _TorchLoader(importlib.abc.Loader):
    """Torch's own loader, followed by us. It steps aside before anybody can look at it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _torch_is_there()


def _torch_is_there() -> None:
    try:
        _start()
    except Exception as error:
        if os.environ.get("MEMLENS_DEBUG") == "1":
            raise
        text = " ".join(str(error).split())
        print(f"memlens: this process is not recorded: {text}", file=sys.stderr)


def _start() -> None:
    from memlens.identity import is_multiprocessing_child
    from memlens.launch.arming import Arm, start_session

    run = Path(os.environ[RUN])
    main = os.environ.get(MAIN_PID) == str(os.getpid())
    if main or not is_multiprocessing_child():
        start_session(run, wait=not main)
    else:
        # Most are DataLoader workers; a rank shows itself soon enough.
        Arm(run).install()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: Arm(run).install())
