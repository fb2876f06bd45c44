"""Muon (Jordan et al. 2024): an orthogonalised momentum for hidden matrices, AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch

from memlens.errors import UsageError
from memlens.optim.together import Together
from memlens.variants.parameters import hidden_matrices
from memlens.variants.request import Request

__all__ = ["make"]

_TAKES = ("params", "lr", "weight_decay")
"""`eps` means something else to Muon, and it has one momentum in place of two betas."""


def make(request: Request) -> Together:
    """`muon` of the catalogue.

    Its rate is scaled so that updates are as large as AdamW's (`match_rms_adamw`, arXiv 2502.16982):
    both get the job's own.

    Raises:
        UsageError: this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(
            f"torch {torch.__version__} has no torch.optim.Muon; update torch to 2.9 or newer"
        )
    matrices, others = request.split(hidden_matrices(request.parameters()))
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                [{name: group[name] for name in _TAKES if name in group} for group in matrices],
                adjust_lr_fn="match_rms_adamw",
                **{name: request.hyper[name] for name in _TAKES if name in request.hyper},
            )
        )
    if others:
        rest: type = request.rest
        optimizers.append(rest(others, **request.hyper))
    together: Any = Together(*optimizers)
    together.memlens_notes = []
    if not matrices:
        together.memlens_notes.append("there are no hidden matrices: AdamW trains all parameters")
    made: Together = together
    return made
