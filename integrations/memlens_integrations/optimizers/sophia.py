"""Sophia-G (arXiv 2305.14342), for loops that know nothing of it.

The method estimates the diagonal of the Hessian every few steps, from gradients of a loss whose labels
are sampled from the model. That takes a loop of its own. Here squares of the job's own gradients stand
in for it (the empirical Fisher), which costs the same memory but no second backward, and is not the
estimate of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sophia_opt import SophiaG

from memlens.variants.request import Request

__all__ = ["SelfEstimatingSophiaG", "make"]


class SelfEstimatingSophiaG(SophiaG):  # type: ignore[misc]
    """Sophia-G that updates its estimate of the Hessian itself, in the first of every few steps.

    Args:
        groups: of parameters.
        hessian_interval: steps from one estimate to the next; 10 in the paper.
        settings: for the library's class.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, hessian_interval: int = 10, **settings: Any
    ) -> None:
        super().__init__(groups, **settings)
        for group in self.param_groups:
            # In the groups, so that they are part of a checkpoint.
            group["hessian_interval"] = max(1, hessian_interval)
            group["steps"] = 0

    def step(self, closure: Callable[[], Any] | None = None, **settings: Any) -> Any:
        """Update the estimate if it is due, then the parameters.

        Args:
            closure: computes the loss and its gradients.
            settings: `bs`, the number of samples of a batch, 5120 by default.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        if first["steps"] % first["hessian_interval"] == 0:
            self.update_hessian()
        super().step(**settings)
        for group in self.param_groups:
            group["steps"] += 1
        return loss


def make(request: Request) -> SelfEstimatingSophiaG:
    """`sophia` of the catalogue."""
    return SelfEstimatingSophiaG(request.groups, **request.hyper, **request.options)
