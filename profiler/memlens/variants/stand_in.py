"""Another optimizer in the place of the one that an unchanged job constructs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.variant import Variant, parse_variant
from memlens.errors import UsageError
from memlens.variants.ask_sharding import ask_for
from memlens.variants.build import build
from memlens.variants.request import read_construction
from memlens.variants.witness import Witness

__all__ = ["StandIn", "begin"]

Optimizer = torch.optim.Optimizer

_CLIPPERS = ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_")


def begin(variant: str, folder: Path, sharding: str = "") -> None:
    """Replace optimizers in this process from here on, for a job that `memlens compare` started.

    Args:
        variant: as people write it.
        folder: where the process says what it did.
        sharding: how the job's ranks have to share the training state (a value of `ShardingMode`);
            empty: as they do.
    """
    witness = Witness(folder)
    undo = ExitStack()  # never unwound: the process is the variant's alone
    witness.install(undo)
    chosen = parse_variant(variant)
    StandIn(chosen, witness).install(undo)
    if sharding:
        ask_for(ShardingMode(sharding), chosen, witness, undo)


class StandIn:
    """Gives the job an optimizer of the variant whenever it constructs one of any class.

    What wraps an optimizer that is there already (Accelerate's), or makes one of a class that it is
    handed (`ZeroRedundancyOptimizer`), is left alone: the optimizer inside is replaced.

    Args:
        variant: what to construct; `as-is` replaces nothing, and merely takes notes.
        witness: takes notes.
    """

    def __init__(self, variant: Variant, witness: Witness) -> None:
        self._variant = variant
        self._witness = witness
        self._building = False

    def install(self, undo: ExitStack) -> None:
        """Decide, from here on, what constructing an optimizer makes."""

        def __new__(cls: type[Optimizer], *args: Any, **kwargs: Any) -> Optimizer:
            if self._building or not _makes_one(args, kwargs) or self._is_again(cls, kwargs):
                return _ordinary(cls)
            return self._construct(cls, args, kwargs)

        setattr(Optimizer, "__new__", __new__)  # noqa: B010
        # Python goes on to call a class's own `__new__` when it has been deleted, and would complain.
        undo.callback(setattr, Optimizer, "__new__", _ordinary)
        row = self._variant.row
        if self._variant.no_retain_grad or (row is not None and row.always_in_backward):
            for name in _CLIPPERS:
                for owner in (torch.nn.utils, torch.nn.utils.clip_grad):
                    if hasattr(owner, name):
                        self._refuse_clipping(owner, name, undo)

    def _construct(
        self, cls: type[Optimizer], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Optimizer:
        self._witness.replaced.append(cls.__name__)
        if self._variant.row is None:
            return _ordinary(cls)
        self._building = True
        try:
            optimizer = build(self._variant, read_construction(cls, args, kwargs))
        finally:
            self._building = False
        self._witness.optimizers.append(optimizer)
        if isinstance(optimizer, cls):
            # Python now calls the constructor of what it got; it has been called.
            optimizer.__class__ = _constructed(type(optimizer))
        return optimizer

    def _is_again(self, cls: type[Optimizer], kwargs: dict[str, Any]) -> bool:
        """Whether it is one of ours that is made again, as DeepSpeed does with Adagrad.

        Its settings are those that ours has: to translate them once more would scale them twice.
        """
        return bool(kwargs) and any(
            type(each) is cls
            and kwargs.keys() == each.defaults.keys()
            and all(kwargs[name] is value for name, value in each.defaults.items())
            for each in self._witness.optimizers
        )

    def _refuse_clipping(self, owner: Any, name: str, undo: ExitStack) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise UsageError(
                f"the job clips its gradients ({name}), and {self._variant.name} has used each up within "
                "backward, before the last one was there; switch clipping off in the job, or leave "
                "gradients retained"
            )

        setattr(owner, name, refuse)
        undo.callback(setattr, owner, name, original)


def _ordinary(cls: type[Optimizer], *args: Any, **kwargs: Any) -> Optimizer:
    return object.__new__(cls)


def _makes_one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this constructs an optimizer from parameters."""
    if not args and not kwargs:  # it is being copied or unpickled
        return False
    first = args[0] if args else kwargs.get("optimizer")
    # DeepSpeed's wrappers are no torch.optim.Optimizer, and have its groups all the same.
    wraps = isinstance(first, Optimizer) or hasattr(first, "param_groups")
    return not wraps and "optimizer_class" not in kwargs


def _constructed(kind: type[Any]) -> type[Any]:
    """A class whose constructor only makes its object an ordinary one of `kind`."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.__class__ = kind

    return type(kind.__name__, (kind,), {"__init__": __init__})
