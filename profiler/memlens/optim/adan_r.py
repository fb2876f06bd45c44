"""Adan-R: Adan that keeps its intermediate in the previous gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from memlens.optim.reuse import (
    as_number,
    buckets,
    check_hyperparameters,
    gradients_of,
    local,
    local_state,
    refuse_options,
    square_root_into,
)

__all__ = ["AdanR"]

State = dict[str, Tensor]


class AdanR(Optimizer):
    """Adan whose `step()` allocates nothing; the parameters are bit-identical to Adan's.

    Adan keeps the previous gradient to take the difference of two (Xie et al., "Adan: Adaptive
    Nesterov Momentum Algorithm", arXiv 2208.06677). With the decay rates written as here, i.e. as one
    minus those of the paper, and g' the previous gradient:

        m = lerp(m, g, 1 - beta1)
        d = lerp(d, g - g', 1 - beta2)
        n = beta3 * n + (1 - beta3) * (g + beta2 * (g - g'))^2
        p = (p - lr * (m / (1 - beta1^t) + beta2 * d / (1 - beta2^t)) / denominator) / (1 + lr * decay)
        denominator = sqrt(n / (1 - beta3^t)) + eps

    Adan allocates the denominator for the whole model at once. Here it is built in the storage of g',
    which has been read for the last time by then, and which the current gradient is written to at the
    end (Dong and Lin, "A Memory-Reduced Optimizer", PRCV 2024).

    Groups, hyperparameters and state are those of `pytorch_optimizer.Adan`: `exp_avg`, `exp_avg_diff`,
    `exp_avg_sq` and `previous_grad` (with the sign turned), and a `step` in each group. A checkpoint of
    either can be loaded into the other and the training goes on bit-identically.

    **After `step()`, `p.grad` is as it was**: nothing in a job has to change.

    Gradients must be dense and real. An lr that is a tensor is read as a number in each step.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay rates of m, d and n.
        weight_decay: strength of the decay of weights.
        weight_decouple: True for AdamW's decay, `p * (1 - lr * decay)` before the update, instead of
            the paper's.
        eps: added to the denominator.
        maximize: go up instead of down. (`pytorch_optimizer.Adan` takes a wrong first difference then:
            it keeps the previous gradient before it negates it.)
        foreach: False to follow the original's way of computing without foreach.

    Raises:
        UsageError: a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        check_hyperparameters(
            "AdanR", betas=betas, count=3, lr=lr, weight_decay=weight_decay, eps=eps
        )
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "weight_decouple": weight_decouple,
            "max_grad_norm": 0.0,  # of the original, which clips by it; here clipping is the job's
            "eps": eps,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        refuse_options("AdanR", state.get("param_groups", ()), ("use_gc", "adanorm"))
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters.

        Args:
            closure: clears the gradients, computes them anew and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            UsageError: a gradient is sparse or complex; nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, parameters, gradients in gradients_of(self):
            group["step"] = group.get("step", 0) + 1
            update = _update_one_by_one if group["foreach"] is False else _update_together
            for some, theirs in buckets(parameters, gradients):
                states = [self._state_of(parameter, group) for parameter in some]
                update(group, [local(parameter) for parameter in some], theirs, states)
        return loss

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> State:
        state: State = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["exp_avg_diff"] = torch.zeros_like(parameter)
            # So that the first difference is zero.
            assert parameter.grad is not None
            gradient = parameter.grad.detach()
            state["previous_grad"] = gradient.clone() if group["maximize"] else -gradient
        return local_state(state) if hasattr(parameter, "to_local") else state


# The job's gradients are never written to. Maximizing means -g instead of g; negation is exact and
# commutes with rounding, so lerp(m, -g, w) is computed as -lerp(-m, g, w).
#
# The order of operations of the two functions below is that of the original with foreach and without:
# in low precision these two do not agree to the bit.


def _update_together(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: list[State]
) -> None:
    """One step for tensors of one device and dtype."""
    lr, eps, decay = as_number(group["lr"]), group["eps"], group["weight_decay"]
    beta1, beta2, beta3 = map(as_number, group["betas"])
    step, maximize = group["step"], group["maximize"]
    sign = -1 if maximize else 1
    moments = [state["exp_avg"] for state in states]
    difference_moments = [state["exp_avg_diff"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    previous = [state["previous_grad"] for state in states]

    differences = previous
    torch._foreach_add_(differences, gradients, alpha=sign)
    if maximize:
        torch._foreach_neg_(moments)
    torch._foreach_lerp_(moments, gradients, 1 - beta1)
    if maximize:
        torch._foreach_neg_(moments)
    torch._foreach_lerp_(difference_moments, differences, 1 - beta2)
    torch._foreach_mul_(differences, beta2)
    torch._foreach_add_(differences, gradients, alpha=sign)
    torch._foreach_mul_(squares, beta3)
    torch._foreach_addcmul_(squares, differences, differences, 1 - beta3)
    denominators = differences  # which are spent from here on
    square_root_into(denominators, squares)
    torch._foreach_div_(denominators, (1 - beta3**step) ** 0.5)
    torch._foreach_add_(denominators, eps)
    if decay != 0 and group["weight_decouple"]:
        torch._foreach_mul_(parameters, 1 - lr * decay)
    torch._foreach_addcdiv_(parameters, moments, denominators, -lr / (1 - beta1**step))
    torch._foreach_addcdiv_(
        parameters, difference_moments, denominators, -lr * beta2 / (1 - beta2**step)
    )
    if decay != 0 and not group["weight_decouple"]:
        torch._foreach_div_(parameters, 1 + lr * decay)
    torch._foreach_copy_(previous, gradients)
    if not maximize:
        torch._foreach_neg_(previous)


def _update_one_by_one(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: list[State]
) -> None:
    """The same without the foreach functions."""
    lr, eps, decay = as_number(group["lr"]), group["eps"], group["weight_decay"]
    beta1, beta2, beta3 = map(as_number, group["betas"])
    step, maximize = group["step"], group["maximize"]
    sign = -1 if maximize else 1
    for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
        moment, difference_moment = state["exp_avg"], state["exp_avg_diff"]
        square, previous = state["exp_avg_sq"], state["previous_grad"]
        difference = previous.add_(gradient, alpha=sign)
        if maximize:
            moment.neg_().lerp_(gradient, 1 - beta1).neg_()
        else:
            moment.lerp_(gradient, 1 - beta1)
        difference_moment.lerp_(difference, 1 - beta2)
        difference.mul_(beta2).add_(gradient, alpha=sign)
        square.mul_(beta3).addcmul_(difference, difference, value=1 - beta3)
        # The difference is spent from here on.
        denominator = torch.sqrt(square, out=difference)
        denominator.div_((1 - beta3**step) ** 0.5).add_(eps)
        if decay != 0 and group["weight_decouple"]:
            parameter.mul_(1 - lr * decay)
        parameter.addcdiv_(moment, denominator, value=-lr / (1 - beta1**step))
        parameter.addcdiv_(difference_moment, denominator, value=-lr * beta2 / (1 - beta2**step))
        if decay != 0 and not group["weight_decouple"]:
            parameter.div_(1 + lr * decay)
        previous.copy_(gradient)
        if not maximize:
            previous.neg_()
