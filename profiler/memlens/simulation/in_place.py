"""What torch writes in place in a real job, and into a new tensor while a mode sees operators.

Torch does not know what a mode would make of a write, so some of its own code takes a new tensor as
soon as one is active (`isTensorSubclassLike`). Here nothing has data, and a write is as good as a copy:

* the sums of gradients that the autograd engine makes where a tensor has several uses, into the first
  of them if nobody else has it: `accumulate` in torch/csrc/autograd/input_buffer.cpp;
* formulas of derivatives that write into zeros which they have just made: `index_backward`,
  `value_selecting_reduction_backward`, `gather_backward`, ... in torch/csrc/autograd/FunctionsManual.cpp
  and aten/src/ATen/native/TensorAdvancedIndexing.cpp;
* the bias that `linear` adds to a product of its own: aten/src/ATen/native/Linear.cpp.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import torch
from torch.autograd import graph

from memlens.simulation.values import MOST_BYTES

__all__ = ["InPlace"]

_ENGINE: CodeType = graph._engine_run_backward.__code__
"""The frame from which the engine runs; on one thread, what it calls itself is called from there."""
_task: Any = torch._C._current_graph_task_id
_storage_use_count: Any = torch._C._storage_Use_Count
_use_count: Any = getattr(torch.Tensor, "_use_count", lambda tensor: 0)
"""Not in every torch; then the other two have to do."""
_References = tuple[int, int, int]


class InPlace:
    """Tells those operators from the same ones that a job asks for.

    Torch's own code calls them without a Python frame between. Of those that a formula may also mean to
    be out of place, the first argument must be nobody else's: how many references that are depends on
    the release of torch, so it is measured once.
    """

    def __init__(self) -> None:
        self._frames = 0
        """From the asking frame to the engine's; 0: not measured yet."""
        self._alone: _References = (0, 0, 0)
        self._written: Callable[[], Any] = lambda: None
        """The last tensor that a formula wrote into."""

    def measure(self) -> None:
        """See what a tensor looks like that only the engine has."""
        # On the host, and so large that it has no data.
        leaf = torch.empty(MOST_BYTES, requires_grad=True)
        inner = leaf + 1
        with torch.enable_grad():
            torch.autograd.grad((inner.sin() + inner.cos()).sum(), leaf)

    def is_meant(self, func: torch._ops.OpOverload, args: Sequence[Any]) -> bool:
        """Whether a real job would write the result into the first argument.

        Args:
            func: an operator of `OPERATORS`.
            args: its arguments, all of them positional.
        """
        in_backward = _task() != -1 and not torch.is_grad_enabled()
        may_be = OPERATORS[func._schema.name]
        if may_be in (_is_sum, _is_of_loss):
            if not (in_backward or may_be is _is_sum):
                return False
            first = args[0]
            references = (
                _use_count(first),
                _storage_use_count(first.untyped_storage()._cdata),
                sys.getrefcount(first),
            )
            if not self._frames and may_be is _is_sum:
                self._measured(references)
            # A formula in one expression refers to what it writes into once for each part of it.
            if may_be is _is_sum and _is_bias(args):
                # In inference mode there is one reference less. Python's own sums have one more.
                return references[0] <= self._alone[0] and references[1:] == self._alone[1:]
            again = may_be is _is_of_loss and first is self._written()
            if references != self._alone and not again:
                return False
        if in_backward and sys._getframe(self._frames).f_code is _ENGINE and may_be(func, args):
            self._written = weakref.ref(args[0])
            return True
        return False

    def _measured(self, references: _References) -> None:
        frames, frame = 0, sys._getframe(1)
        while frame.f_code is not _ENGINE:
            if frame.f_back is None:
                return  # asked from elsewhere
            frames += 1
            frame = frame.f_back
        self._frames, self._alone = frames, references


def _is_sum(func: Any, args: Sequence[Any]) -> bool:
    if len(args) != 2 or not isinstance(args[1], torch.Tensor):
        return False
    held, new = args
    return (
        held.shape == new.shape
        and held.layout is torch.strided
        and (held.is_contiguous() or _is_dense(held))
    )


def _is_bias(args: Sequence[Any]) -> bool:
    return (
        len(args) == 2
        and isinstance(args[1], torch.Tensor)
        and args[1].dim() == 1
        and args[0].dim() > 1
    )


def _always(func: Any, args: Sequence[Any]) -> bool:
    return True


def _adds_up(func: Any, args: Sequence[Any]) -> bool:
    """Else it is the derivative of the operator itself, whose first argument is the gradient."""
    return len(args) > 3 and bool(args[3])


def _is_overload(name: str) -> Callable[[Any, Sequence[Any]], bool]:
    return lambda func, args: bool(func._overloadname == name)


def _is_of_loss(func: Any, args: Sequence[Any]) -> bool:
    node = torch._C._current_autograd_node()
    return node is not None and node.name() == "BinaryCrossEntropyWithLogitsBackward0"


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie without gaps and overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


OPERATORS: dict[str, Callable[[Any, Sequence[Any]], bool]] = {
    "aten::add": _is_sum,
    "aten::index_put": _adds_up,
    "aten::_unsafe_index_put": _adds_up,
    "aten::put": _adds_up,
    "aten::scatter_add": _always,
    "aten::index_add": _always,
    "aten::masked_scatter": _always,
    "aten::scatter": _is_overload("src"),
    "aten::index_fill": _is_overload("int_Tensor"),
    "aten::sub": _is_of_loss,
    "aten::mul": _is_of_loss,
}
"""When one that is called within a derivative's formula or by the engine is meant to be in place."""
