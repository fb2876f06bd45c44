"""LOMO (arXiv 2306.09782): SGD within backward, so that no gradient outlives its layer.

The update is that of pytorch_optimizer. Its class wants a model, takes one learning rate when it is
made, and has no `step()`; here it gets groups of parameters, reads the rate of a parameter's group at
every update, and has a `step()` that ends the training step, so that schedules and loops work as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_optimizer import LOMO

from memlens.errors import UsageError
from memlens.optim.in_backward import AccumulationGuard
from memlens.variants.request import Request

__all__ = ["GroupedLOMO", "make"]


class _Parameter:
    """Stands for a parameter when LOMO hooks into its backward, which it cannot take back."""

    def __init__(self, parameter: torch.Tensor, handles: list[Any]) -> None:
        self._parameter = parameter
        self._handles = handles
        self.requires_grad = parameter.requires_grad

    def register_post_accumulate_grad_hook(self, hook: Callable[[torch.Tensor], None]) -> None:
        self._handles.append(self._parameter.register_post_accumulate_grad_hook(hook))


class _Model:
    """All that LOMO asks of a model."""

    def __init__(self, parameters: list[torch.Tensor], handles: list[Any]) -> None:
        self._parameters = parameters
        self._handles = handles

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter(self._parameters)

    def named_parameters(self) -> Iterator[tuple[str, _Parameter]]:
        for number, parameter in enumerate(self._parameters):
            yield str(number), _Parameter(parameter, self._handles)


class GroupedLOMO(LOMO):
    """LOMO over groups of parameters.

    Args:
        groups: each may have an `lr` of its own.
        lr: of groups that have none.
        maximize: go up.

    Raises:
        UsageError: parameters are fp16, which needs a scaled loss and clipped gradients.
    """

    updates_in_backward = True
    """Gradients are gone when backward returns."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float = 1e-3, maximize: bool = False
    ) -> None:
        parameters = [parameter for group in groups for parameter in group["params"]]
        if any(parameter.dtype == torch.float16 for parameter in parameters):
            raise UsageError(
                "LOMO trains fp16 parameters only with clipped gradients, which takes two backward "
                "passes in a step; use bf16 or fp32"
            )
        self._handles: list[Any] = []
        model: Any = _Model(parameters, self._handles)
        super().__init__(model, lr=lr, maximize=maximize)
        # The library has put all parameters into one group.
        self.param_groups.clear()
        for group in groups:
            self.add_param_group(dict(group))
        self._number = {
            id(parameter): number
            for number, group in enumerate(self.param_groups)
            for parameter in group["params"]
        }
        self._guard = AccumulationGuard()
        # The library's hooks on the parameters look this function up whenever they are called.
        self._fused_update = self.grad_func
        self.grad_func = self._update

    def _update(self, unused: Any, params: list[torch.Tensor]) -> None:
        for parameter in params:
            self._guard.update(parameter)
            self.lr = float(self.param_groups[self._number[id(parameter)]]["lr"])
            self._fused_update(unused, [parameter])

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


def make(request: Request) -> GroupedLOMO:
    """`lomo` of the catalogue."""
    return GroupedLOMO(request.groups, **request.hyper)
