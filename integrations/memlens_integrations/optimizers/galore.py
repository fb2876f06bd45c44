"""GaLore (arXiv 2403.03507): moments of gradients that are projected onto a few of their directions.

The steps are those of galore-torch. Two things are done differently here, because they would distort
every comparison:

* Its projector keeps a view of the SVD's factor, and with it the whole factor in fp32.
  `OwnMatrixProjector` keeps a matrix of its own size.
* Its `GaLoreAdamW8bit` hands bitsandbytes' constructor arguments by position that 0.50 has dropped,
  so that they become others (`max_unorm=100`, `skip_zeros=True`); it synchronises CUDA after every
  parameter (and so fails without CUDA), and leaves `p.grad` in the shape of the projection.
  `GaLoreAdamW8bit` here lets bitsandbytes update a low-rank tensor in the parameter's stead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from galore_torch import GaLoreAdafactor, GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from memlens.errors import UsageError
from memlens.variants.parameters import hidden_matrices
from memlens.variants.request import Request

__all__ = ["GaLoreAdamW8bit", "OwnMatrixProjector", "make"]

_PROJECTIONS = ("std", "reverse_std", "left", "right", "full")


class OwnMatrixProjector(GaLoreProjector):  # type: ignore[misc]
    """The library's projector, with a matrix that holds no memory but its own."""

    def get_orthogonal_matrix(self, weights: torch.Tensor, rank: int, type: str) -> Any:
        """Directions of the largest singular values: `rank` rows or columns, or (`full`) both."""
        found = super().get_orthogonal_matrix(weights, rank, type)
        return [_own(each) for each in found] if isinstance(found, list) else _own(found)


def _own(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.clone(memory_format=torch.contiguous_format)


class GaLoreAdamW8bit(AdamW8bit):
    """bitsandbytes' 8-bit AdamW, with the gradients of groups that have a `rank` projected.

    Any version of bitsandbytes does that has `init_state` and `update_step` for one parameter. Weight
    decay is that of galore-torch: decoupled, of the full matrix, after the update.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; gradients are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        library: Any = self  # it has no annotations
        if not library.initialized:
            library.check_overrides()
            library.to_gpu()
            library.initialized = True
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if "rank" in group:
                    self._step_projected(group, parameter, number, index)
                    continue
                if not self.state[parameter]:
                    library.init_state(group, parameter, number, index)
                library.update_step(group, parameter, number, index)
        return loss

    def _step_projected(
        self, group: dict[str, Any], parameter: torch.Tensor, number: int, index: int
    ) -> None:
        state = self.state[parameter]
        projector = state["projector"]
        gradient = projector.project(parameter.grad, state.get("step", 0))
        # Updated in the parameter's stead: begins as zeros, so that in the end it is the update.
        update = torch.zeros_like(gradient)
        update.grad = gradient
        settings = {**group, "weight_decay": 0.0}
        library: Any = self
        self.state[update] = state
        try:
            if "state1" not in state:
                library.init_state(settings, update, number, index)
            library.update_step(settings, update, number, index)
        finally:
            del self.state[update]
        parameter.add_(projector.project_back(update))
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


_KINDS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (GaLoreAdamW, {"no_deprecation_warning": True}),
    "adamw8bit": (GaLoreAdamW8bit, {}),
    "adafactor": (GaLoreAdafactor, {"scale_parameter": False, "relative_step": False}),
}
"""Class, and what its constructor needs besides."""


def make(request: Request) -> torch.optim.Optimizer:
    """`galore-adamw`, `galore-adamw8bit` and `galore-adafactor` of the catalogue.

    Projected are hidden matrices whose smaller side exceeds `rank`: for others the projection would
    be as large as the matrix, and moments and projector would cost more than moments alone.

    Raises:
        UsageError: an option makes no sense.
    """
    settings = request.options
    rank = settings["rank"]
    if rank < 1 or settings["proj_type"] not in _PROJECTIONS:
        raise UsageError(
            f"GaLore needs a rank of at least 1 and a proj_type of {', '.join(_PROJECTIONS)}, "
            f"not {rank} and {settings['proj_type']!r}"
        )
    matrices = hidden_matrices(request.parameters())
    chosen = [each for each in matrices if min(each.shape) > rank]
    projected, others = request.split(chosen)
    kind, needed = _KINDS[request.fixed["kind"]]
    optimizer: Any = kind(
        [*({**group, **settings} for group in projected), *others], **request.hyper, **needed
    )

    def give_projectors(*_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"] if "rank" in group else ():
                state = optimizer.state[parameter]
                if "projector" not in state:
                    state["projector"] = OwnMatrixProjector(**settings)

    give_projectors()
    # Theirs is made by a step where there is none: of parameters that DeepSpeed has put in the place
    # of these, say.
    optimizer.register_step_pre_hook(give_projectors)
    optimizer.memlens_notes = []
    if len(chosen) < len(matrices):
        optimizer.memlens_notes.append(
            f"{len(matrices) - len(chosen)} of {len(matrices)} hidden matrices have a side of {rank} "
            "or less, the rank, and are not projected"
        )
    made: torch.optim.Optimizer = optimizer
    return made
