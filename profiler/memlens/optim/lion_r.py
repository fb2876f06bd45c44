"""Lion-R: Lion that keeps its intermediate in the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from memlens.optim.reuse import (
    as_number,
    buckets,
    check_hyperparameters,
    first_elements,
    gradients_to_spend,
    local,
    mark_spent,
    refuse_options,
)

__all__ = ["LionR"]

_FIRST_SHARE = 256
"""The scratch memory to begin with is at most this part of all elements."""


class _Batch(NamedTuple):
    """What one update takes: as many tensors of each kind, of the same shapes."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    moments: list[Tensor]
    signs: list[Tensor]
    """Scratch memory."""


class LionR(Optimizer):
    """Lion that allocates next to nothing in `step()`; the parameters are bit-identical to Lion's.

    Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675) updates

        p = p * (1 - lr * decay) - lr * sign(lerp(m, g, 1 - beta1))
        m = lerp(m, g, 1 - beta2)

    and allocates the sign for the whole model at once. It cannot go into the storage of g, which the
    second line has yet to read. The published variant (Dong and Lin, "A Memory-Reduced Optimizer",
    PRCV 2024) takes the second line first, and then the sign of `lerp(g, m, beta1 / beta2)`: the same
    in exact arithmetic, but m has been rounded in between, and where `lerp(m, g, 1 - beta1)` nearly
    cancels (within a few roundings of |m|) the sign turns, and the weight is off by up to 2 lr. With
    normally distributed numbers that happens to one element in 10^7 per step in float32, and to one
    in 5000 in bfloat16.

    Here the sign of one tensor goes into the gradient of *another* one that is already done, from small
    tensors to large ones; a tensor that is larger than all those before it is done in pieces of its
    own, each as large as all before. What is allocated is scratch memory to begin with (at most the
    256th part of all, at most the smallest tensor), and for a tensor whose gradient has other strides
    than itself and that is larger than all before it. No rounding changes, so the result is bit-identical
    in any dtype, bfloat16 included.

    Groups, hyperparameters and state are those of `pytorch_optimizer.Lion`: `exp_avg`, and a `step` in
    each group. A checkpoint of either can be loaded into the other and the training goes on
    bit-identically.

    **After `step()`, `p.grad` holds no gradient**, see `AdamWR`, of which everything said there about
    gradients is true here.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: how much of m is left in the update, and in the next m.
        weight_decay: strength of the decay of weights.
        weight_decouple: False to add the decay to the gradient.
        fixed_decay: True for a decoupled decay that is not multiplied by lr.
        maximize: go up instead of down.
        foreach: False to follow the original's way of computing without foreach.

    Raises:
        UsageError: a hyperparameter is out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        check_hyperparameters("LionR", betas=betas, count=2, lr=lr, weight_decay=weight_decay)
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "weight_decouple": weight_decouple,
            "fixed_decay": fixed_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        refuse_options("LionR", state.get("param_groups", ()), ("use_gc", "adanorm", "cautious"))
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
            UsageError: a gradient is sparse or complex, or was not cleared since the last step;
                nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, parameters, gradients in gradients_to_spend(self):
            group["step"] = group.get("step", 0) + 1
            for some, theirs in buckets(parameters, gradients):
                self._update(group, some, theirs)
                mark_spent(theirs)
        return loss

    def _moment_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        return local(state["exp_avg"])

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        """One step for tensors of one device and dtype; the arithmetic is the original's."""
        lr, decay = as_number(group["lr"]), group["weight_decay"]
        beta1, beta2 = map(as_number, group["betas"])
        moments = [self._moment_of(parameter) for parameter in parameters]
        parameters = [local(parameter) for parameter in parameters]
        together = group["foreach"] is not False
        if firsts := first_elements(gradients):
            # The sign of NaN is 0: Lion would swallow the one that a spent gradient begins with. (An
            # infinite first element, which Lion takes for a direction, becomes NaN here as well.)
            torch._foreach_add_(first_elements(parameters), firsts, alpha=0)
        if group["maximize"]:
            torch._foreach_neg_(gradients)
        if decay != 0 and not group["weight_decouple"]:
            torch._foreach_add_(gradients, parameters, alpha=decay)
        elif decay != 0:
            kept = 1 - decay * (1 if group["fixed_decay"] else lr)
            if together:
                torch._foreach_mul_(parameters, kept)
            else:
                for parameter in parameters:
                    parameter.mul_(kept)
        update = _update_together if together else _update_one_by_one
        for batch in _batches(parameters, gradients, moments):
            update(batch, lr, 1 - beta1, 1 - beta2)


# The order of operations of the two functions below is that of the original with foreach and without.


def _update_together(batch: _Batch, lr: float, weight1: float, weight2: float) -> None:
    parameters, gradients, moments, signs = batch
    if signs[0].is_cpu:
        # The foreach functions have no `out`, and are loops on the CPU anyway: one pass, not two.
        for sign, moment, gradient in zip(signs, moments, gradients, strict=True):
            torch.lerp(moment, gradient, weight1, out=sign)
    else:
        torch._foreach_copy_(signs, moments)
        torch._foreach_lerp_(signs, gradients, weight1)
    torch._foreach_sign_(signs)
    torch._foreach_lerp_(moments, gradients, weight2)
    torch._foreach_add_(parameters, signs, alpha=-lr)


def _update_one_by_one(batch: _Batch, lr: float, weight1: float, weight2: float) -> None:
    for parameter, gradient, moment, sign in zip(*batch, strict=True):
        torch.lerp(moment, gradient, weight1, out=sign).sign_()
        moment.lerp_(gradient, weight2)
        parameter.add_(sign, alpha=-lr)


def _batches(
    parameters: list[Tensor], gradients: list[Tensor], moments: list[Tensor]
) -> Iterator[_Batch]:
    """All elements, in an order in which gradients already used can be scratch memory.

    Whoever iterates is done with a batch when asking for the next one. Tensors go by size, and at
    once as many as there are used gradients of that size: about log2(k) batches for k equal tensors.
    """
    order = sorted(
        (size, index) for index, parameter in enumerate(parameters) if (size := parameter.numel())
    )
    begin_elements = math.ceil(sum(size for size, _ in order) / _FIRST_SHARE)
    used: list[Tensor] = []  # gradients without gaps, all as large as the largest one so far
    used_size = position = 0
    while position < len(order):
        size, index = order[position]
        if size == used_size:
            some, theirs, momenta, signs = batch = _Batch([], [], [], [])
            for scratch, (its_size, index) in zip(used[:], order[position:], strict=False):
                if its_size != size:
                    break
                gradient = gradients[index]
                some.append(parameters[index])
                theirs.append(gradient)
                momenta.append(moments[index])
                signs.append(_like(scratch, gradient))
                if _fills_its_memory(gradient):
                    used.append(gradient)
            position += len(some)
            yield batch
            continue
        position += 1
        parameter, gradient, moment = parameters[index], gradients[index], moments[index]
        fills = _fills_its_memory(gradient)
        if fills and parameter.stride() == gradient.stride() == moment.stride():
            scratch = used[0] if used else gradient.new_empty(min(begin_elements, size))
            yield from _pieces(*map(_flat, (parameter, gradient, moment, scratch)))
        else:
            yield _Batch([parameter], [gradient], [moment], [torch.empty_like(gradient)])
        if fills:
            used, used_size = [gradient], size


def _pieces(
    parameter: Tensor, gradient: Tensor, moment: Tensor, scratch: Tensor
) -> Iterator[_Batch]:
    """One flat tensor: first as much as there is scratch memory, then each time as much as before."""
    size, begin = gradient.numel(), 0
    while begin < size:
        end = min(size, begin + scratch.numel())
        part = slice(begin, end)
        yield _Batch([parameter[part]], [gradient[part]], [moment[part]], [scratch[: end - begin]])
        begin = end
        if begin >= scratch.numel():
            scratch = gradient[:begin]


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether there is no gap between the elements, in whichever order they lie."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _flat(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps as one dimension."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _like(scratch: Tensor, gradient: Tensor) -> Tensor:
    """The memory of a tensor without gaps in the shape of another one with as many elements."""
    if scratch.shape == gradient.shape and scratch.stride() == gradient.stride():
        return scratch
    if _fills_its_memory(gradient):
        return scratch.as_strided(gradient.shape, gradient.stride())
    return _flat(scratch).view(gradient.shape)
