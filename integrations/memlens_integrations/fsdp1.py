"""FullyShardedDataParallel (FSDP1): flat parameters, their shards, gradients and gathered copies.

The parameters of a unit are one flat parameter, of which each rank holds a part of equal size. That shard
is a weight, also where a policy casts it for the computation. What is gathered from the shards, cast or
not, is communication memory, and so is what is made to reduce gradients. Of each flat tensor it is told
which elements are whose.

With `use_orig_params=False` the model's own parameters exist no more. For each of them an empty tensor
stands in here, so that it has a name and a module.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from memlens.adapters import Holding, Piece, mark_scope, watch_calls
from memlens.events import Category, WeightKind
from memlens.recording.recorder import Recorder
from memlens.torch_private_distributed import WRAPPED, Private, living

__all__ = ["FullyShardedDataParallelAdapter"]

_HANDLE = "FSDP1 handle"
_FLAT, _RUNTIME = "FSDP1 flat parameter", "FSDP1 runtime"

_SCOPES = {
    "init_flat_param_attributes": "all-gathered parameters",
    "pre_unshard": "cast shard",
    "unshard": "all-gathered parameters",
}
"""What each of these allocates, unless an object says otherwise."""

_STAND_INS: weakref.WeakKeyDictionary[nn.Module, dict[str, nn.Parameter]] = (
    weakref.WeakKeyDictionary()
)
"""Per module: empty tensors in the stead of its parameters that are part of a flat one."""


class FullyShardedDataParallelAdapter:
    """Knows what the units of FSDP1 hold."""

    library = "torch.distributed.fsdp"

    def __init__(self) -> None:
        self._units: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handles: weakref.WeakSet[Any] = weakref.WeakSet()
        self._names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._named = 0
        """How many units there were when modules got their names: a later one may hold them all."""

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Learn of units as they are made, and hook into what moves their memory."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        self._recorder = recorder
        private = self._private = Private(recorder.problem)
        owner = private.owner(_HANDLE)
        if owner is None:
            return
        self._units = living(FullyShardedDataParallel)
        self._handles = living(owner)
        for handle in list(self._handles):
            self._name_parameters(handle)
        watch_calls(
            recorder,
            undo,
            FullyShardedDataParallel,
            "__init__",
            after=lambda unit, *_: self._units.add(unit),
        )
        watch_calls(recorder, undo, owner, "__init__", after=self._made)
        for name in (*_SCOPES, "reshard"):
            if not private.has(_HANDLE, owner, name):
                continue
            if name in _SCOPES:
                _mark(recorder, undo, owner, name, _SCOPES[name])
            watch_calls(recorder, undo, owner, name, after=self._tell)
        runtime = private.owner(_RUNTIME)
        name = "_post_backward_hook"
        if runtime is not None and private.has(_RUNTIME, runtime, name):
            _mark(recorder, undo, runtime, name, "reduce-scatter buffer")
            tell = self._tell_of
            watch_calls(recorder, undo, runtime, name, before=tell, after=tell)

    def sharding(self) -> Iterable[str]:
        """Whether it is in use."""
        return ["FSDP1"] if len(self._units) else []

    def weights(self, module: nn.Module) -> Iterable[tuple[str, torch.Tensor, WeightKind]]:
        """Parameters that are part of a flat one."""
        for name, parameter in _STAND_INS.get(module, {}).items():
            trains = parameter.requires_grad
            yield name, parameter, WeightKind.TRAINABLE if trains else WeightKind.FROZEN

    def holdings(self) -> Iterable[Holding]:
        """What all units hold."""
        for handle in list(self._handles):
            yield from self._holdings_of(handle)

    # -- hooks ---------------------------------------------------------------------------------

    def _made(self, handle: Any, *_: Any) -> None:
        self._handles.add(handle)
        self._name_parameters(handle)
        self._tell(handle)

    def _tell(self, handle: Any, *_: Any) -> None:
        for holding in self._holdings_of(handle):
            self._recorder.hold(holding)

    def _tell_of(self, state: Any, handle: Any, *_: Any) -> None:
        self._tell(handle)

    # -- what is held --------------------------------------------------------------------------

    def _holdings_of(self, handle: Any) -> Iterator[Holding]:
        flat = self._private.read(_HANDLE, handle, "flat_param")
        if flat is None:
            return
        name = self._name(handle)
        shard = self._read(flat, "_local_shard")
        pieces = tuple(self._pieces_of_shard(flat))
        if shard is None:  # the model was not called yet
            if pieces:
                yield Holding(flat, Category.WEIGHT, f"flat shard{name}", pieces=pieces)
            else:
                yield Holding(flat.data, Category.WEIGHT, f"flat parameter{name}")
            return
        yield Holding(shard, Category.WEIGHT, f"flat shard{name}", pieces=pieces)
        if flat.data_ptr() == shard.data_ptr():  # so that its gradient and state have pieces
            yield Holding(flat, Category.WEIGHT, f"flat shard{name}", pieces=pieces)
        yield from self._originals(flat, shard)
        whole = tuple(self._pieces_of_whole(flat))
        for attribute in ("_full_param_padded", "_full_prec_full_param_padded"):
            tensor = self._read(flat, attribute)
            if tensor is not None:
                text = f"all-gathered parameters{name}"
                yield Holding(tensor, Category.COMMUNICATION, text, pieces=whole)
        cast = self._read(flat, "_mp_shard")
        if cast is not None:
            yield Holding(cast, Category.COMMUNICATION, f"cast shard{name}", pieces=pieces)
        for tensor in (flat.grad, *map(self._reader(flat), ("_saved_grad_shard", "_cpu_grad"))):
            if tensor is None:
                continue
            is_shard = tensor.numel() == shard.numel()
            text = f"{'sharded' if is_shard else 'unsharded'} gradients{name}"
            yield Holding(tensor, Category.GRADIENT, text, pieces=pieces if is_shard else whole)

    def _originals(self, flat: Any, shard: torch.Tensor) -> Iterator[Holding]:
        """The model's own parameters, where they are kept: views of the shard."""
        begin = shard.untyped_storage().data_ptr()
        infos = self._read(flat, "_shard_param_infos") or ()
        elements = self._read(flat, "_numels") or ()
        kept = self._read(flat, "_params") or ()
        for parameter, info, count in zip(kept, infos, elements, strict=False):
            if info[0] and parameter.untyped_storage().data_ptr() == begin:
                _, _, held, first, _ = info
                piece = Piece(parameter, 0, held, first, count)
                yield Holding(parameter, Category.WEIGHT, pieces=(piece,))

    def _read(self, flat: Any, name: str) -> Any:
        return self._private.read(_FLAT, flat, name)

    def _reader(self, flat: Any) -> Any:
        return lambda name: self._read(flat, name)

    def _name(self, handle: Any) -> str:
        """` of layers.0`: the unit's place in the model; empty for the model itself."""
        module = self._private.read(_HANDLE, handle, "_fully_sharded_module")
        if module is None:
            return ""
        if len(self._units) != self._named:
            self._named = len(self._units)
            for unit in list(self._units):
                for path, inner in unit.named_modules():
                    text = ".".join(part for part in path.split(".") if part not in WRAPPED)
                    if len(text) >= len(self._names.get(inner, "")):
                        self._names[inner] = text
        text = self._names.get(module, "")
        return f" of {text}" if text else ""

    def _name_parameters(self, handle: Any) -> None:
        flat = self._private.read(_HANDLE, handle, "flat_param")
        if flat is None or self._read(flat, "_params") is not None:
            return
        for name, module, _ in self._read(flat, "_param_infos") or ():
            empty = nn.Parameter(flat.data.new_empty(0), requires_grad=flat.requires_grad)
            _STAND_INS.setdefault(module, {}).setdefault(name, empty)

    def _parameters(self, flat: Any) -> list[Any]:
        """Those that are flattened, in their order; None for one that is not known."""
        kept = self._read(flat, "_params")
        if kept is not None:
            return list(kept)
        infos = self._read(flat, "_param_infos") or ()
        return [_STAND_INS.get(module, {}).get(name) for name, module, _ in infos]

    def _pieces_of_shard(self, flat: Any) -> Iterator[Piece]:
        infos = self._read(flat, "_shard_param_infos") or ()
        elements = self._read(flat, "_numels") or ()
        for parameter, info, count in zip(self._parameters(flat), infos, elements, strict=False):
            if parameter is not None and info[0]:
                start, held, first = info[1:4]
                yield Piece(parameter, start, held, first, count)

    def _pieces_of_whole(self, flat: Any) -> Iterator[Piece]:
        counts = self._read(flat, "_numels_with_padding") or ()
        padding = self._read(flat, "_is_padding_mask") or [False] * len(counts)
        parameters, start = iter(self._parameters(flat)), 0
        for count, is_padding in zip(counts, padding, strict=True):
            if not is_padding:
                parameter = next(parameters, None)
                if parameter is not None:
                    yield Piece(parameter, start, count, 0, count)
            start += count


def _mark(recorder: Recorder, undo: ExitStack, owner: Any, name: str, text: str) -> None:
    mark_scope(
        recorder,
        undo,
        owner,
        name,
        text=text,
        survivors=Category.COMMUNICATION,
        temporaries=Category.COMMUNICATION,
    )
