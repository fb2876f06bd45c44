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
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from memlens.launch.environment import MAIN_PID, PLAN, RUN, SHARDING, VARIANT, VARIANT_OUT
from memlens.options import is_disabled

__all__ = ["begin"]


def begin() -> None:
    """Wait for torch; called when the interpreter starts."""
    if is_disabled(os.environ):
        return
    if "torch" in sys.modules:
        _torch_is_there()
    else:
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder(importlib.abc.MetaPathFinder):
    """Finds torch as the others would, and has us called when its import is done.

    Others may merely ask where torch is (`importlib.util.find_spec`), so it stays until then.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            found = finder.find_spec(name, path, target)
            if found is not None:
                self._follow(found.loader)
                return found
        return None

    def _follow(self, loader: Any) -> None:
        """Be called after `loader` has run; it keeps its class and its other methods."""
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            original(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _torch_is_there()

        try:
            loader.exec_module = exec_module
        except AttributeError as error:
            _say(error)


def _torch_is_there() -> None:
    try:
        _start()
    except Exception as error:
        if os.environ.get("MEMLENS_DEBUG") == "1":
            raise
        _say(error)


def _say(error: Exception) -> None:
    text = " ".join(str(error).split())
    print(f"memlens: this process is not recorded: {text}", file=sys.stderr)


def _start() -> None:
    from memlens.launch.arming import Arm, start_session
    from memlens.recording.identity import is_multiprocessing_child

    run = Path(os.environ[RUN])
    on_step = None
    if plan := os.environ.get(PLAN):
        from memlens.simulation.begin import begin_planned

        on_step = begin_planned(plan, run)
    if variant := os.environ.get(VARIANT):
        from memlens.variants.stand_in import begin as stand_in

        stand_in(variant, Path(os.environ[VARIANT_OUT]), os.environ.get(SHARDING, ""))
    main = os.environ.get(MAIN_PID) == str(os.getpid())
    if is_multiprocessing_child() or threading.current_thread() is not threading.main_thread():
        # Most such children are DataLoader workers; a rank shows itself soon enough. And it is the
        # thread that trains which is to be recorded, not the one that happened to import torch.
        Arm(run).install()
    else:
        start_session(run, wait=not main, on_step=on_step)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: Arm(run).install())
