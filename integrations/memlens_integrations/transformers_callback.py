"""Memory in the logs of Hugging Face's Trainer.

    from memlens_integrations.transformers_callback import MemlensCallback

    Trainer(..., callbacks=[MemlensCallback()])

Each entry of the Trainer's log then has the scalars of `memlens.scalars()` for the last training step,
and so has whatever it reports to: TensorBoard, Weights & Biases, `trainer.state.log_history`. Where no
session records (`memlens run`, `memlens.profile`), the callback records from `train()` on.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from memlens.errors import MissingDependencyError
from memlens_integrations.in_callbacks import Recording

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingDependencyError(
        "transformers", "log memory in its Trainer", "transformers"
    ) from None

__all__ = ["MemlensCallback"]


class MemlensCallback(TrainerCallback):
    """Adds what a training step took to the Trainer's logs; never fails the training.

    Args:
        out: folder of the run, where this callback has to start the recording.
    """

    def __init__(self, out: str | os.PathLike[str] | None = None) -> None:
        self._recording = Recording(out)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer is made."""
        self._go_first()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training begins."""
        self._go_first()
        self._recording.begin()

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The Trainer logs: of training, not of an evaluation, which is no training step."""
        if logs is None or any(name.startswith("eval_") for name in logs):
            return
        found = self._recording.scalars()
        logs.update(found)
        if state.log_history:  # has a copy of the logs already
            state.log_history[-1].update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training has ended."""
        self._recording.end()

    def _go_first(self) -> None:
        """Be called before those that write the logs somewhere; the Trainer puts them first.

        It hands itself to no callback, so the list of them is found where this one is called from.
        """
        frame = inspect.currentframe()
        try:
            caller = frame.f_back.f_back if frame is not None and frame.f_back else None
            callbacks = getattr(caller and caller.f_locals.get("self"), "callbacks", None)
            if isinstance(callbacks, list) and self in callbacks:
                callbacks.remove(self)
                callbacks.insert(0, self)
        finally:
            del frame
