"""APOLLO (arXiv 2412.05270): AdamW's step sizes, learnt from a random projection of the gradient.

The step is that of pytorch_optimizer, except for its last line. The method scales the gradient itself
by what it learns from the projection (equation 4 there; apollo-torch does so too). pytorch_optimizer
4.1 scales the projection and projects that back, so that its update has no more than `rank`
directions, and applies `scale` twice. `ScalingProjector` is asked to project back and returns the
scaled gradient. State is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import APOLLO
from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

from memlens.errors import UsageError
from memlens.variants.parameters import hidden_matrices
from memlens.variants.request import Request

__all__ = ["ScalingProjector", "make"]

_TINY = 1e-8
"""Keeps a channel without gradient from dividing by zero, as in the library."""


class ScalingProjector(GaLoreProjector):
    """Scales the gradient itself as its projection was scaled since `project`.

    Args:
        scale_type: `channel`: one factor for each row or column (the longer side); `tensor`: one.
        settings: for the library's projector.
    """

    def __init__(self, scale_type: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._scale_type = scale_type
        self._gradients: tuple[torch.Tensor, torch.Tensor] | None = None

    def project(self, grad: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The gradient's projection, which the caller scales."""
        projection: torch.Tensor = super().project(grad, *args, **kwargs)
        self._gradients = grad, projection
        return projection

    def project_back(self, low_rank_grad: torch.Tensor) -> torch.Tensor:
        """The gradient, scaled as `low_rank_grad` is against the projection."""
        assert self._gradients is not None, "project_back follows project"
        gradient, projection = self._gradients
        self._gradients = None
        dims = None
        if self._scale_type == "channel":
            dims = 0 if projection.shape[0] < projection.shape[1] else 1
        size = torch.linalg.vector_norm(projection, dim=dims, keepdim=True)
        scaled = torch.linalg.vector_norm(low_rank_grad, dim=dims, keepdim=True)
        return gradient.mul(scaled / (size + _TINY))


def make(request: Request) -> torch.optim.Optimizer:
    """`apollo` of the catalogue; APOLLO-Mini is `apollo:rank=1,scale_type=tensor,scale=128`.

    Projected are hidden matrices whose smaller side exceeds `rank`.

    Raises:
        UsageError: an option makes no sense.
    """
    options = dict(request.options)
    scale_type, rank = options.pop("scale_type"), options["rank"]
    if rank < 1 or scale_type not in ("channel", "tensor"):
        raise UsageError(
            "APOLLO needs a rank of at least 1 and a scale_type of channel or tensor, "
            f"not {rank} and {scale_type!r}"
        )
    settings = {**options, "projection_type": "std"}
    matrices = hidden_matrices(request.parameters())
    chosen = [each for each in matrices if min(each.shape) > rank]
    projected, others = request.split(chosen)
    optimizer: Any = APOLLO(
        [*({**group, **settings} for group in projected), *others],
        scale_type=scale_type,
        **request.hyper,
    )
    for group in optimizer.param_groups:
        if "rank" in group:
            for parameter in group["params"]:
                # Theirs is made by the first step, where there is none.
                optimizer.state[parameter]["projector"] = ScalingProjector(scale_type, **settings)
    optimizer.memlens_notes = []
    if len(chosen) < len(matrices):
        optimizer.memlens_notes.append(
            f"{len(matrices) - len(chosen)} of {len(matrices)} hidden matrices have a side of {rank} "
            "or less, the rank, and are not projected"
        )
    made: torch.optim.Optimizer = optimizer
    return made
