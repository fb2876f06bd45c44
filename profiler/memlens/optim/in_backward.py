"""Updating layer by layer within backward, so that no gradient outlives its layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

from memlens.errors import UsageError
from memlens.optim.together import Together

__all__ = ["AccumulationGuard", "StepInBackward"]


class AccumulationGuard:
    """Sees a second gradient for a parameter within one training step, and refuses it.

    An update within backward uses up the gradient, so that gradients of several batches can never be
    added up: each would be an update of its own.
    """

    def __init__(self) -> None:
        self._updated: set[int] = set()

    def update(self, parameter: torch.Tensor) -> None:
        """Note the update of a parameter.

        Raises:
            UsageError: it has been updated since the last step.
        """
        if id(parameter) in self._updated:
            raise UsageError(
                "a second backward before optimizer.step(): an optimizer that updates within backward "
                "retains no gradients, so it cannot accumulate them; use one batch per step, or "
                "leave gradients retained"
            )
        self._updated.add(id(parameter))

    def step(self) -> None:
        """A training step is over."""
        self._updated.clear()


class StepInBackward(Together):
    """Steps an optimizer for each parameter as soon as its gradient is complete, then frees it.

    No more than one layer's gradients are alive at a time (as in LOMO, arXiv 2306.09782, and GaLore's
    per-layer updates, arXiv 2403.03507). `step()` has nothing left to do but to end the step.

    What this cannot do: clip gradients by their global norm (the first layers have been updated when
    the last gradient comes), accumulate gradients over several batches (refused), skip a step after
    all gradients have been looked at (`GradScaler`), or share a parameter between optimizers.

    Args:
        optimizer: counts its steps for each parameter, as torch's own do, and not for each group.
    """

    updates_in_backward = True
    """Gradients are gone when backward returns."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self._optimizer = optimizer
        self._guard = AccumulationGuard()
        self._position: dict[int, int] = {}
        self._handles = []
        # Not itself: parameters, which outlive it, would keep it and its state alive.
        reference = weakref.ref(self)

        def update(parameter: torch.Tensor) -> None:
            this = reference()
            if this is not None:
                this._update(parameter)

        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                self._position[id(parameter)] = number
                if parameter.requires_grad:
                    self._handles.append(parameter.register_post_accumulate_grad_hook(update))

    def _update(self, parameter: torch.Tensor) -> None:
        self._guard.update(parameter)
        groups = self._optimizer.param_groups
        alone = {**groups[self._position[id(parameter)]], "params": [parameter]}
        self._optimizer.param_groups = [alone]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """End the training step; the closure's backward, if there is one, updates the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._guard.step()
        return loss

    def remove(self) -> None:
        """Take the hooks off the parameters; gradients are retained again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
