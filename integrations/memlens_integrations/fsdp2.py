"""`fully_shard` (FSDP2): shards, gathered parameters, gradients, and the buffers of its collectives.

A parameter is a DTensor of which each rank holds some rows, padded to as many as the first rank has. The
shard is a weight, also where a policy casts it for the computation: it is what the optimizer updates.
What is gathered from the shards, cast or not, and the buffers of the collectives are communication
memory. Gradients are gradients before and after they are reduced; those of a group lie in one buffer.

Gathered parameters keep their storages, which are emptied and filled again; so each gathering and each
release is told.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from memlens.adapters import Holding, Piece, mark_scope, watch_calls
from memlens.events import Category
from memlens.recording.recorder import Recorder
from memlens.torch_private_distributed import Private, living

__all__ = ["FullyShardAdapter"]

_GROUP, _PARAMETER, _BUFFERS = "FSDP2 group", "FSDP2 parameter", "FSDP2 buffers"

_SCOPES = {
    "unshard": "all-gather buffer",
    "wait_for_unshard": "all-gathered parameters",
    "post_backward": "reduce-scatter buffer",
}
"""What each of these allocates, unless an object says otherwise."""


class FullyShardAdapter:
    """Knows what the parameter groups of `fully_shard` hold."""

    library = "torch.distributed.fsdp"

    def __init__(self) -> None:
        self._groups: weakref.WeakSet[Any] = weakref.WeakSet()
        self._told: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """Where the shard of each parameter was when it was told."""

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Learn of groups as they are made, and hook into what moves their memory."""
        self._recorder = recorder
        private = self._private = Private(recorder.problem)
        owner = private.owner(_GROUP)
        if owner is None:
            return
        self._groups = living(owner)
        watch_calls(
            recorder, undo, owner, "__init__", after=lambda group, *_: self._groups.add(group)
        )
        before = {"post_backward": self._before_reduction}
        after = {
            "unshard": self._after_gather,
            "wait_for_unshard": self._tell_gathered,
            "reshard": self._tell_gathered,
            "post_backward": self._after_reduction,
        }
        for name in after:
            if not private.has(_GROUP, owner, name):
                continue
            if name in _SCOPES:
                mark_scope(
                    recorder,
                    undo,
                    owner,
                    name,
                    text=_SCOPES[name],
                    survivors=Category.COMMUNICATION,
                    temporaries=Category.COMMUNICATION,
                )
            watch_calls(recorder, undo, owner, name, before=before.get(name), after=after[name])

    def holdings(self) -> Iterable[Holding]:
        """What all groups hold, but for what is the same as before; what moves is told as it moves."""
        for group in list(self._groups):
            for each in self._parameters(group):
                shard = self._private.read(_PARAMETER, each, "_sharded_param_data")
                place = 0 if shard is None else shard.data_ptr()
                if not place or self._told.get(each) != place:
                    self._told[each] = place
                    yield from self._shard(each)
                    yield from self._gathered(each)
            yield from self._reduced(group)

    def sharding(self) -> Iterable[str]:
        """Whether it is in use."""
        return ["FSDP2"] if len(self._groups) else []

    # -- hooks ---------------------------------------------------------------------------------

    def _after_gather(self, group: Any, *_: Any) -> None:
        result = self._private.read(_GROUP, group, "_all_gather_result")
        if result is not None:
            buffer = self._private.read(_BUFFERS, result, "all_gather_output")
            self._tell_buffer(buffer, "all-gather buffer", group)

    def _tell_gathered(self, group: Any, *_: Any) -> None:
        for each in self._parameters(group):
            for holding in self._gathered(each):
                self._recorder.hold(holding)

    def _before_reduction(self, group: Any, *_: Any) -> None:
        for each in self._parameters(group):
            for holding in self._unreduced(each):
                self._recorder.hold(holding)

    def _after_reduction(self, group: Any, *_: Any) -> None:
        context = self._private.read(_GROUP, group, "comm_ctx")
        states = self._private.read(_BUFFERS, context, "reduce_scatter_states")
        if states is None:
            states = [self._private.read(_BUFFERS, context, "reduce_scatter_state")]
        for state in states[-1:]:
            if state is not None:
                buffer = self._private.read(_BUFFERS, state, "reduce_scatter_input")
                self._tell_buffer(buffer, "reduce-scatter buffer", group)
        self._before_reduction(group)  # what is kept, to be reduced later
        for holding in self._reduced(group):
            self._recorder.hold(holding)

    def _tell_buffer(self, buffer: torch.Tensor | None, what: str, group: Any) -> None:
        if buffer is not None:
            self._recorder.hold(Holding(buffer, Category.COMMUNICATION, self._text(what, group)))

    # -- what is held --------------------------------------------------------------------------

    def _parameters(self, group: Any) -> list[Any]:
        return list(self._private.read(_GROUP, group, "fsdp_params") or ())

    def _text(self, what: str, group: Any) -> str:
        name = self._private.read(_GROUP, group, "_module_fqn")
        return f"{what} of {name}" if name else what

    def _shard(self, each: Any) -> Iterator[Holding]:
        parameter = self._private.read(_PARAMETER, each, "sharded_param")
        if parameter is None:
            return
        place = _place(parameter)
        if place is None:
            yield Holding(parameter, Category.WEIGHT)
            return
        first, count = place
        piece = Piece(parameter, 0, count, first, parameter.numel())
        yield Holding(parameter, Category.WEIGHT, pieces=(piece,))
        padded = self._private.read(_PARAMETER, each, "_sharded_param_data")
        if count == 0 and padded is not None:  # this rank has no row of it, and pads one
            yield Holding(padded, Category.WEIGHT, "padding of", parameter=parameter)

    def _gathered(self, each: Any) -> Iterator[Holding]:
        read = self._private.read
        parameter = read(_PARAMETER, each, "sharded_param")
        outputs = read(_PARAMETER, each, "all_gather_outputs") or ()
        inner = read(_PARAMETER, each, "_unsharded_inner_tensors") or ()
        for tensor in (*outputs, *inner):
            yield Holding(tensor, Category.COMMUNICATION, "all-gathered", parameter=parameter)
        smaller = read(_PARAMETER, each, "_sharded_post_forward_param_data")
        if smaller is not None:
            yield Holding(smaller, Category.COMMUNICATION, "resharded", parameter=parameter)

    def _unreduced(self, each: Any) -> Iterator[Holding]:
        read = self._private.read
        parameter = read(_PARAMETER, each, "sharded_param")
        gathered = read(_PARAMETER, each, "_unsharded_param")
        gradient = None if gathered is None else gathered.grad
        for tensor in (gradient, read(_PARAMETER, each, "unsharded_accumulated_grad")):
            if tensor is not None:
                yield Holding(tensor, Category.GRADIENT, "unsharded", parameter=parameter)

    def _reduced(self, group: Any) -> Iterator[Holding]:
        """The buffers that gradients of a group are views of; its parameters name their parts."""
        seen = set()
        for each in self._parameters(group):
            parameter = self._private.read(_PARAMETER, each, "sharded_param")
            gradient = None if parameter is None else parameter.grad
            if gradient is None:
                continue
            local = self._private.read("DTensor", gradient, "_local_tensor")
            if local is None or not local.numel():
                continue
            storage = local.untyped_storage()
            if storage.data_ptr() in seen:
                continue
            seen.add(storage.data_ptr())
            elements = storage.nbytes() // local.element_size()
            if elements > local.numel():
                with torch.no_grad():
                    flat = local.as_strided((elements,), (1,), 0)
                yield Holding(flat, Category.GRADIENT, self._text("sharded gradients", group))


def _place(parameter: Any) -> tuple[int, int] | None:
    """First element and number of elements that this rank has; None if they are not one range."""
    if not hasattr(parameter, "placements"):
        return None
    sharded = [dim for dim, each in enumerate(parameter.placements) if not each.is_replicate()]
    if not sharded:
        return 0, parameter.numel()
    if len(sharded) > 1 or not parameter.placements[sharded[0]].is_shard(0):
        return None
    rows, mesh = parameter.shape[0], parameter.device_mesh
    most = -(-rows // mesh.size(sharded[0]))
    # Not its local rank: asked for that, a mesh looks up a process group, which may be gone by now.
    first = min(most * mesh.get_coordinate()[sharded[0]], rows)
    elements = parameter.numel() // rows
    return first * elements, min(most, rows - first) * elements
