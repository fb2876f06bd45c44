"""Armed: three cheap hooks that start a session when a process begins to train."""

from __future__ import annotations

import multiprocessing.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from memlens.disk.format import RANK_FILE
from memlens.options import Options
from memlens.recording.identity import is_loader_worker
from memlens.recording.session import Session, current_session

__all__ = ["Arm", "announce", "start_session"]


def start_session(run: Path, *, wait: bool, on_step: Callable[[int], None] | None = None) -> None:
    """Start the session of this process, and say at its end where the capture is.

    Args:
        run: the run's folder.
        wait: hold everything in memory until the process turns out to train a model.
        on_step: called with the number of each training step that begins, but the first.
    """
    session = Session(
        Options.from_environment(), run=run, wait=wait, on_close=announce, on_step=on_step
    )
    session.start()
    # Children of multiprocessing end without atexit. They have a list of their own for that, which
    # they clear when they begin to work; by then a script with a model has been imported.
    _stop_with_process(session)
    multiprocessing.util.register_after_fork(session, _stop_with_process)


def _stop_with_process(session: Session) -> None:
    if current_session() is session:
        multiprocessing.util.Finalize(None, session.stop_at_exit, exitpriority=100)


def announce(session: Session) -> None:
    """Say where the capture of a session is, once it is complete."""
    if session.run is None or not session.is_recorded or session.rank not in (0, None):
        return
    ranks = list(session.run.glob(f"*/{RANK_FILE}"))
    # A process that merely started those who train stays silent, as does one whose folder is gone.
    if len(ranks) == 1 or (session.trains and ranks):
        print(
            f"memlens: recorded {session.events:,} events; read them with: "
            f"memlens report {session.url or _short(session.run)}",
            file=sys.stderr,
        )


def _short(run: Path | None) -> str:
    try:
        return str(Path(str(run)).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(run)


class Arm:
    """Waits in a process that is most likely a helper; costs a function call per module call."""

    _waiting = False
    """One of them waits in this process; a fork inherits it together with its hooks."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._undo = ExitStack()

    def install(self) -> None:
        """Set the hooks. They remove themselves when the first one fires."""
        if Arm._waiting:
            return
        Arm._waiting = True
        # Of the constructor, not of the first parameter: that has been allocated by then.
        for owner in (torch.nn.Module, torch.optim.Optimizer):
            self._hook_constructor(owner)
        handle = torch_module.register_module_forward_pre_hook(self._fire)
        self._undo.callback(handle.remove)

    def _hook_constructor(self, owner: Any) -> None:
        original = owner.__init__

        @wraps(original)
        def __init__(this: Any, *args: Any, **kwargs: Any) -> None:
            self._fire()
            original(this, *args, **kwargs)

        owner.__init__ = __init__
        self._undo.callback(setattr, owner, "__init__", original)

    def _fire(self, *_: object) -> None:
        if not Arm._waiting or torch.compiler.is_compiling():
            return
        Arm._waiting = False
        try:
            self._undo.close()
            if not is_loader_worker():
                start_session(self._run, wait=True)
        except Exception as error:
            print(f"memlens: this process is not recorded: {error}", file=sys.stderr)
