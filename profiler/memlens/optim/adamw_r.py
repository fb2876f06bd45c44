"""AdamW-R: `torch.optim.AdamW` that keeps its intermediate in the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memlens.errors import UsageError
from memlens.optim.reuse import (
    as_number,
    buckets,
    gradients_to_spend,
    local,
    local_state,
    mark_spent,
    square_root_into,
)

__all__ = ["AdamWR"]

State = dict[str, Tensor]


class AdamWR(torch.optim.AdamW):
    """AdamW whose `step()` allocates nothing; the parameters are bit-identical to AdamW's.

    The update divides the first moment by a denominator, `sqrt(v / (1 - beta2^t)) + eps`, and AdamW
    allocates that for the whole model at once (with foreach; for one parameter at a time without).
    The gradient has been read for the last time by then, so the denominator is built in its storage
    (Dong and Lin, "A Memory-Reduced Optimizer", PRCV 2024; AdamW: arXiv 1711.05101).

    Groups, hyperparameters and state are those of `torch.optim.AdamW`, and so are its state dicts:
    a checkpoint of either can be loaded into the other and the training goes on bit-identically.

    **After `step()`, `p.grad` holds no gradient**: what is in there is not specified, except that the
    first element is NaN, so that whoever uses it as a gradient finds out. Clear gradients after each
    step, in whichever way; read them (for norms, clipping, logging) before it. A `step()` on gradients
    that were not cleared raises `UsageError`. If the job keeps its gradient tensors
    (`zero_grad(set_to_none=False)`), checking that reads one element of each, for which `step()` waits
    for the device.

    Gradients must be dense and real. An lr that is a tensor is read as a number in each step.

    Args:
        params: as for `torch.optim.AdamW`, and so are `lr`, `betas`, `eps`, `weight_decay`, `amsgrad`
            and `maximize`.
        foreach: as for `torch.optim.AdamW`: which of its two ways of computing is followed.
        options: `capturable`, `differentiable` and `fused`, which must not be asked for: the first two
            need tensors that outlive the step, the third needs no intermediate to begin with. What a
            checkpoint says about them is ignored.

    Raises:
        UsageError: one of these three is asked for.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        **options: Any,
    ) -> None:
        for name in ("capturable", "differentiable", "fused"):
            if options.pop(name, None):
                raise UsageError(
                    f"AdamWR has no {name}=True; leave it out, or use torch.optim.AdamW"
                )
        if options:
            raise TypeError(f"AdamWR has no option {sorted(options)[0]!r}")
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            group.update(capturable=False, differentiable=False, fused=False)
            for parameter in group["params"]:
                kept = self.state.get(parameter)
                if kept:
                    # Of a fused or capturable AdamW: on the device, where reading it would wait.
                    kept["step"] = kept["step"].to("cpu", _counter_dtype())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters.

        Args:
            closure: clears the gradients, computes them anew and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            UsageError: a gradient is sparse or complex, or was not cleared since the last step;
                nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, parameters, gradients in gradients_to_spend(self):
            foreach = group["foreach"]
            if foreach is None:  # as AdamW decides, so that the result is the same
                foreach = not any(parameter.is_cpu for parameter in parameters)
            update = _update_together if foreach else _update_one_by_one
            for some, theirs in buckets(parameters, gradients):
                states = [self._state_of(parameter, group) for parameter in some]
                update(group, [local(parameter) for parameter in some], theirs, states)
                mark_spent(theirs)
        return loss

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> State:
        state: State = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=_counter_dtype(), device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = torch.zeros_like(parameter)
        return local_state(state) if hasattr(parameter, "to_local") else state


# The order of operations of the two functions below is that of AdamW with foreach and of AdamW
# without: in low precision not even torch's own two agree to the bit.


def _update_together(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: list[State]
) -> None:
    """One step for tensors of one device and dtype."""
    lr, eps, decay = as_number(group["lr"]), group["eps"], group["weight_decay"]
    beta1, beta2 = map(as_number, group["betas"])
    step_sizes, corrections = [], []
    for state in states:
        step = _count(state)
        step_sizes.append(-(lr / (1 - beta1**step)))
        corrections.append((1 - beta2**step) ** 0.5)
    moments = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]

    if group["maximize"]:
        torch._foreach_neg_(gradients)
    if decay != 0:
        torch._foreach_mul_(parameters, 1 - lr * decay)
    torch._foreach_lerp_(moments, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    if group["amsgrad"]:
        largest = [state["max_exp_avg_sq"] for state in states]
        torch._foreach_maximum_(largest, squares)
        squares = largest
    denominators = gradients  # which are spent from here on
    square_root_into(denominators, squares)
    torch._foreach_div_(denominators, corrections)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(parameters, moments, denominators, step_sizes)


def _update_one_by_one(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: list[State]
) -> None:
    """The same without the foreach functions."""
    lr, eps, decay = as_number(group["lr"]), group["eps"], group["weight_decay"]
    beta1, beta2 = map(as_number, group["betas"])
    maximize, amsgrad = group["maximize"], group["amsgrad"]
    for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
        step = _count(state)
        moment, square = state["exp_avg"], state["exp_avg_sq"]
        if maximize:
            gradient.neg_()
        if decay != 0:
            parameter.mul_(1 - lr * decay)
        moment.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if amsgrad:
            largest = state["max_exp_avg_sq"]
            square = torch.maximum(largest, square, out=largest)
        # The gradient is spent from here on.
        denominator = torch.sqrt(square, out=gradient).div_((1 - beta2**step) ** 0.5).add_(eps)
        parameter.addcdiv_(moment, denominator, value=-(lr / (1 - beta1**step)))


def _count(state: State) -> float:
    """Count a step in the state; returns its number, from 1."""
    step = state["step"].item() + 1
    state["step"].fill_(step)
    return step


def _counter_dtype() -> torch.dtype:
    """As AdamW's: counts in float32, unless float64 is the default."""
    return torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
