"""Memory in the logs of Lightning (`lightning` and `pytorch_lightning`).

    from memlens_integrations.lightning_callback import MemlensCallback

    Trainer(callbacks=[MemlensCallback()])

Every `log_every_n_steps` optimizer steps, the scalars of `memlens.scalars()` go to all loggers of the
Trainer. Where no session records (`memlens run`, `memlens.profile`), the callback records from `fit()`
on.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from memlens.errors import MissingDependencyError
from memlens_integrations.in_callbacks import Recording

__all__ = ["MemlensCallback"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[Any, ...]:
    """Lightning's class of callbacks: of the package that the job uses, of both if it has both."""
    used = [name for name in _PACKAGES if name in sys.modules]
    found = []
    for name in used or _PACKAGES:
        try:
            found.append(import_module(name).Callback)
        except ImportError:
            continue
        else:
            if not used:
                break
    if not found:
        raise MissingDependencyError("lightning", "log memory in its Trainer", "lightning")
    return tuple(dict.fromkeys(found))


class MemlensCallback(*_bases()):  # type: ignore[misc]  # found at run time
    """Hands what a training step took to the loggers; never fails the training.

    Args:
        out: folder of the run, where this callback has to start the recording.
    """

    def __init__(self, out: str | os.PathLike[str] | None = None) -> None:
        self._recording = Recording(out)
        self._logged = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins."""
        self._logged = trainer.global_step
        self._recording.begin()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done; the optimizer may have stepped."""
        step, every = trainer.global_step, trainer.log_every_n_steps
        if not every or not trainer.loggers or step // every == self._logged // every:
            return
        self._logged = step
        found = self._recording.scalars()
        if found:
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step - 1)  # counted from 0, as Lightning's own

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Training has ended."""
        self._recording.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Training has failed."""
        self._recording.end()
