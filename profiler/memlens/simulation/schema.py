"""What is to be known of an operator before it runs, worked out once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from memlens.simulation.kernels.replaced import replacement
from memlens.simulation.kernels.temporaries import LIMITS

__all__ = ["Schema", "schema_of"]

_MATRIX_PRODUCTS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "dot", "mv", "_addmm_activation"}
)
"""Operators that ask cuBLAS, which wants a workspace."""
_PRODUCTS_AND_SUMS = ("addmm", "_addmm_activation")
"""They ask cuBLASLt where a bias is added, which wants another one."""
_COMPOSED = frozenset({
    "binary_cross_entropy_with_logits", "dist", "embedding", "logsumexp", "soft_margin_loss",
    "soft_margin_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward", "_safe_softmax",
    "_euclidean_dist", "mvlgamma", "ldexp", "block_diag", "rot90", "nan_to_num", "linalg_lstsq",
})  # fmt: skip
"""Operators that CUDA has no kernel for: torch makes them of others, whose results are memory as well."""


@dataclass(frozen=True)
class Schema:
    """What the simulation wants to know of an operator."""

    makes: bool
    """Some of what it returns is new."""
    writes: tuple[int, ...]
    """Positions of arguments that it writes into."""
    is_factory: bool
    """It takes no tensor."""
    sizes: int
    """Position of the argument that says the size; -1: none does."""
    name: str
    is_product: bool
    adds: bool
    """A product that a bias may be added to at once."""
    replaced: Callable[..., Any] | None
    """Makes its results those of CUDA."""
    outs: tuple[str, ...]
    """Names of arguments that take the results, and are made as large as those."""
    composite: Any
    """Key of the kernel that makes it of other operators, where these are to be seen; else None."""
    limit: str
    """What is not known of its memory; empty: nothing to speak of."""


@cache
def schema_of(func: torch._ops.OpOverload) -> Schema:
    """Read an operator's schema, once."""
    schema = func._schema
    arguments = schema.arguments
    name = schema.name.partition("::")[2]
    return Schema(
        makes=any(each.alias_info is None for each in schema.returns),
        writes=tuple(
            place
            for place, each in enumerate(arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ),
        is_factory=not any("Tensor" in str(each.type) for each in arguments),
        sizes=next((place for place, each in enumerate(arguments) if each.name == "size"), -1),
        name=name,
        is_product=name in _MATRIX_PRODUCTS,
        adds=name in _PRODUCTS_AND_SUMS,
        replaced=replacement(func),
        outs=tuple(each.name for each in arguments if each.is_out),
        composite=_composite(func, name),
        limit=LIMITS.get(name, ""),
    )


def _composite(func: torch._ops.OpOverload, name: str) -> Any:
    has = func.has_kernel_for_dispatch_key
    keys = torch._C.DispatchKey
    if func.namespace == "prim" or has(keys.PrivateUse1):
        return None
    # Autograd takes these apart; they come where it is not asked: in inference mode, in other composites.
    if has(keys.CompositeImplicitAutograd) and not has(keys.CPU):
        return keys.CompositeImplicitAutograd
    explicit = (keys.CompositeExplicitAutograd, keys.CompositeExplicitAutogradNonFunctional)
    return next((key for key in explicit if name in _COMPOSED and has(key)), None)
