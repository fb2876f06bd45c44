"""Weights and gradients in 16 bits, updates in 32: an optimizer over fp32 copies of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from memlens.variants.request import Request

__all__ = ["MasterWeights", "make_adamw"]


class MasterWeights(torch.optim.Optimizer):
    """Keeps a fp32 copy of each parameter, updates the copy, and rounds it into the parameter.

    The scheme of mixed-precision training (Micikevicius et al., arXiv 1710.03740): updates that are
    small against the weight are not lost to rounding. Parameters are updated one after the other, so
    that one fp32 gradient is alive at a time. Those that are fp32 already have no copy.

    Args:
        params: parameters, or groups of them.
        make: makes the optimizer that updates the copies, from groups of them.
    """

    def __init__(
        self,
        params: Any,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:
        self._masters: dict[torch.Tensor, torch.Tensor] = {}
        super().__init__(params, {})
        copies = [
            {**group, "params": [self._master(each) for each in group["params"]]}
            for group in self.param_groups
        ]
        self.optimizer = make(copies)
        self.defaults.update(self.optimizer.defaults)
        for mine, theirs in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            mine.update({name: value for name, value in theirs.items() if name != "params"})

    def _master(self, parameter: torch.Tensor) -> torch.Tensor:
        if parameter.dtype == torch.float32:
            return parameter
        master = self._masters[parameter] = parameter.detach().clone().float()
        return master

    @property
    def state(self) -> Any:
        """By parameter of the model: its master weight, and the state of the update."""
        if not hasattr(self, "optimizer"):
            return {}
        held: dict[torch.Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                master = self._masters.get(parameter, parameter)
                state = dict(self.optimizer.state.get(master, {}))
                if master is not parameter:
                    state["master_weight"] = master
                if state:
                    held[parameter] = state
        return held

    @state.setter
    def state(self, value: Any) -> None:
        """The base class sets an empty one when it is made."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inner = self.optimizer
        groups = inner.param_groups
        try:
            for mine, theirs in zip(self.param_groups, groups, strict=True):
                # A schedule has set `lr` in ours.
                theirs.update({name: value for name, value in mine.items() if name != "params"})
                for parameter, master in zip(mine["params"], theirs["params"], strict=True):
                    if parameter.grad is None:
                        continue
                    if master is not parameter:
                        master.grad = parameter.grad.float()
                    inner.param_groups = [{**theirs, "params": [master]}]
                    inner.step()
                    if master is not parameter:
                        master.grad = None
                        parameter.copy_(master)
        finally:
            inner.param_groups = groups
        return loss

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint: the masters stand beside the state of their update."""
        state = self.optimizer.state_dict()
        masters = [
            self._masters.get(parameter)
            for group in self.param_groups
            for parameter in group["params"]
        ]
        return {**state, "master_weights": masters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint of `state_dict`; the masters are the truth, parameters follow."""
        own = dict(state_dict)
        saved = own.pop("master_weights")
        self.optimizer.load_state_dict(own)
        parameters = [each for group in self.param_groups for each in group["params"]]
        for parameter, master in zip(parameters, saved, strict=True):
            if master is not None:
                self._masters[parameter].copy_(master)
                with torch.no_grad():
                    parameter.copy_(master)
        for mine, theirs in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            mine.update({name: value for name, value in theirs.items() if name != "params"})


def make_adamw(request: Request) -> MasterWeights:
    """`adamw-mixed` of the catalogue."""
    return MasterWeights(
        request.groups,
        lambda groups: torch.optim.AdamW(groups, **request.hyper, **request.fixed),
    )
