"""DeepSpeed where CUDA is simulated and tensors have no data: one rank of many that are not there.

Its accelerator is CUDA's, over the simulated `torch.cuda`. What is changed is what would wait for other
ranks' values, would look at values to decide whether to step, or would compile kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from memlens_integrations.deepspeed.private import (
    COMPARISONS,
    IN_PLACE_OPERATORS,
    LOADER,
    OVERFLOW_CHECKS,
    find_private,
)

__all__ = ["simulate_deepspeed"]


def simulate_deepspeed() -> None:
    """Have DeepSpeed run in this process, which simulates, for good; the job may import it any time."""
    from memlens.simulation.disguise.imports import when_imported

    when_imported("deepspeed.runtime.engine", _change)


def _change() -> None:
    for path in OVERFLOW_CHECKS:
        _replace(path, _finite)
    for path in COMPARISONS:
        _replace(path, _first)
    _replace(LOADER, _load)


def _replace(path: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put another function in the place of one; what a version does not have it does not call."""
    owner, name = find_private(path)
    if owner is not None:
        setattr(owner, name, wrap(getattr(owner, name)))


def _finite(check: Callable[..., bool]) -> Callable[..., bool]:
    """It allocates what it does, and finds that gradients are finite: so the step is taken."""

    @functools.wraps(check)
    def call(*args: Any, **kwargs: Any) -> bool:
        check(*args, **kwargs)
        return False

    return call


def _first(compare: Callable[..., Any]) -> Callable[..., Any]:
    """What the first rank has is what this one has."""
    return lambda value, *_, **__: value


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    """Load no operator: those of optimizers write into what they are given, and there are no values."""
    from memlens.simulation.problems import refuse
    from memlens.simulation.process import current_simulation

    def call(builder: Any, verbose: bool = False) -> Any:
        if builder.name in IN_PLACE_OPERATORS:
            return _Operators()
        simulated = current_simulation()
        assert simulated is not None
        raise refuse(
            simulated.notes,
            f"DeepSpeed's operator {builder.name!r}",
            "it is compiled for a GPU, and what it allocates is not known here",
            "switch off in the ds_config what needs it, or measure the job with memlens run",
        )

    return call


class _Operators:
    """Has every function; they do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _nothing(*_: object, **__: object) -> None:
    pass
