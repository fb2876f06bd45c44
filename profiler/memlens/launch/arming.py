"""Armed: three cheap hooks that start a session when a process begins to train."""

from __future__ import annotations

import multiprocessing.util
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from memlens.identity import is_loader_worker
from memlens.options import Options
from memlens.session import Session

__all__ = ["Arm", "start_session"]


def start_session(run: Path, *, wait: bool) -> None:
    """Start the session of this process, and say at its end where the capture is.

    Args:
        run: the run's folder.
        wait: hold everything in memory until the process turns out to train a model.
    """
    session = Session(Options.from_environment(), run=run, wait=wait, on_close=_announce)
    session.start()
    # Children of multiprocessing end without atexit; this is where they clean up.
    multiprocessing.util.Finalize(None, session.stop, exitpriority=100)


def _announce(session: Session) -> None:
    if session.rank in (0, None) and session.is_recorded:
        print(
            f"memlens: recorded {session.events:,} events; read them with: "
            f"memlens report {_short(session.run)}",
            file=sys.stderr,
        )


def _short(run: Path | None) -> str:
    try:
        return str(Path(str(run)).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(run)


class Arm:
    """Waits in a process that is most likely a helper; costs a function call per module call."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._undo = ExitStack()
        self._fired = False

    def install(self) -> None:
        """Set the hooks. They remove themselves when the first one fires."""
        for handle in (
            torch_module.register_module_parameter_registration_hook(self._fire),
            torch_module.register_module_forward_pre_hook(self._fire),
        ):
            self._undo.callback(handle.remove)
        original = torch.optim.Optimizer.__init__

        def __init__(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            self._fire()
            original(optimizer, *args, **kwargs)

        torch.optim.Optimizer.__init__ = __init__  # type: ignore[method-assign]
        self._undo.callback(setattr, torch.optim.Optimizer, "__init__", original)

    def _fire(self, *_: object) -> None:
        if self._fired or torch.compiler.is_compiling():
            return
        self._fired = True
        try:
            self._undo.close()
            if not is_loader_worker():
                start_session(self._run, wait=False)
        except Exception as error:
            print(f"memlens: this process is not recorded: {error}", file=sys.stderr)
