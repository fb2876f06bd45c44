"""Backward: when the autograd engine runs, and what gradients it leaves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from memlens import torch_private
from memlens.events import MarkKind
from memlens.observers.parameters import Parameters
from memlens.recording.recorder import Recorder

__all__ = ["BackwardObserver"]


class BackwardObserver:
    """Marks each run of the engine and tags the gradients after it.

    Nested runs (reentrant checkpointing) are marked too; gradients are looked at after the outermost.
    """

    def __init__(self, recorder: Recorder, parameters: Parameters) -> None:
        self._recorder = recorder
        self._parameters = parameters
        self._depth = 0
        self._runs = 0
        self._early = ExitStack()
        self.on_exit: list[Callable[[], None]] = []
        """Called after the outermost backward."""

    def install(self, undo: ExitStack) -> None:
        """Wrap the one function through which Python starts the engine."""
        owner, name = torch_private.backward_engine_owner()
        original: Callable[..., Any] = getattr(owner, name)
        enter = self._recorder.hook("backward observer", self._enter)
        leave = self._recorder.hook("backward observer", self._leave)

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            recorder = self._recorder
            if torch.compiler.is_compiling() or not recorder.is_ours():
                return original(*args, **kwargs)
            enter()
            # Counted even after a fault of ours: inside, the source can be neither drained nor stopped.
            recorder.paused += 1
            try:
                return original(*args, **kwargs)
            finally:
                recorder.paused -= 1
                leave()

        setattr(owner, name, run_backward)
        undo.callback(setattr, owner, name, original)
        undo.callback(self._early.close)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._runs += 1
            self._recorder.begin_backward(self._runs)
            self._recorder.evidence()
            self._before_gradients()
        self._recorder.mark(MarkKind.BACKWARD_ENTER)

    def _leave(self) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._recorder.backward = 0
            self._recorder.take_stock()
            self._parameters.tag_gradients()
        self._recorder.mark(MarkKind.BACKWARD_EXIT)
        if self._depth == 0:
            for call in self.on_exit:
                call()

    def _before_gradients(self) -> None:
        """See which gradients are gone, and look at others before hooks of the job may free them."""
        for known, tensor in self._parameters.alive():
            if not known.ours:
                continue
            if known.grad_address and tensor.grad is None:
                known.grad_address = 0  # zeroed since the last backward; the address may come back
            hooks: dict[int, Any] = getattr(tensor, "_post_accumulate_grad_hooks", None) or {}
            if (hooks or known.leaves_early) and not known.watched:
                known.watched = True
                others = list(hooks)
                handle = tensor.register_post_accumulate_grad_hook(
                    self._recorder.hook("backward observer", self._parameters.tag_early_gradient)
                )
                # The engine reads them in the order in which they came in, whatever an OrderedDict
                # says; so the others come in again.
                for key in others:
                    hooks[key] = hooks.pop(key)
                self._early.callback(handle.remove)
