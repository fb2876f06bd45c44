"""Several optimizers as one, for jobs that construct one and step one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memlens.errors import UsageError

__all__ = ["Together"]


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters, stepped together (Muon for matrices, AdamW for the rest).

    Its groups are theirs, the same objects, so that a schedule that sets `lr` reaches them, and its
    state is theirs. A checkpoint looks like that of one optimizer.

    Args:
        optimizers: at least one; no parameter may be in two of them.

    Raises:
        UsageError: none was given.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        if not optimizers:
            raise UsageError("Together needs at least one optimizer")
        self.optimizers = optimizers
        # The base class makes groups of its own, and sees that no parameter is in two.
        params = [{"params": group["params"]} for each in optimizers for group in each.param_groups]
        super().__init__(params, dict(optimizers[0].defaults))
        self._link()

    def _link(self) -> None:
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]

    @property
    def state(self) -> Any:
        """State of all, by parameter."""
        # Not a ChainMap: a look-up in a defaultdict would make an empty state.
        return {owner: state for each in self.optimizers for owner, state in each.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """The base class sets an empty one when it is made; the state is kept by the optimizers."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each of them.

        Args:
            closure: computes the loss and its gradients; called once.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """One checkpoint: theirs, with the parameters numbered through."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for optimizer in self.optimizers:
            part = optimizer.state_dict()
            state |= {first + number: value for number, value in part["state"].items()}
            groups += [
                {**group, "params": [first + number for number in group["params"]]}
                for group in part["param_groups"]
            ]
            first += sum(len(group["params"]) for group in part["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint of `state_dict` of the same optimizers over the same parameters.

        Raises:
            UsageError: it has another number of groups.
        """
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise UsageError(
                f"the checkpoint has {len(groups)} groups, and these optimizers "
                f"{len(self.param_groups)}: it is of another optimizer"
            )
        for optimizer in self.optimizers:
            mine = [groups.pop(0) for _ in optimizer.param_groups]
            number = {old: new for new, old in enumerate(n for g in mine for n in g["params"])}
            optimizer.load_state_dict(
                {
                    "state": {
                        number[old]: value
                        for old, value in state_dict["state"].items()
                        if old in number
                    },
                    "param_groups": [
                        {**group, "params": [number[old] for old in group["params"]]}
                        for group in mine
                    ],
                }
            )
        self._link()
