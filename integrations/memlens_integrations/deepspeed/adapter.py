"""DeepSpeed: flat weights, master weights, gradients and buffers of ZeRO, stages 0 to 3.

DeepSpeed holds them in its own optimizers, which are none of torch's, and moves parameters and gradients
from one storage to another by `.data`. What stays is read from its objects whenever memlens asks; what is
made and freed within backward is read by hooks in the functions that do it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from memlens.adapters import Holding, mark_scope, watch_calls
from memlens.events import Category
from memlens.recording.recorder import Recorder
from memlens.recording.storages import tensors_in
from memlens.sources.base import Gauge
from memlens.torch_private import storage_pointer
from memlens_integrations.deepspeed.flat import (
    buckets,
    early_gradients,
    holdings_of_bf16,
    holdings_of_flat,
    holdings_of_fp16,
)
from memlens_integrations.deepspeed.private import SET_UP, STEP, Private
from memlens_integrations.deepspeed.simulated import simulate_deepspeed
from memlens_integrations.deepspeed.stage3 import (
    gathered,
    holdings_of_gather,
    holdings_of_module,
    holdings_of_stage_3,
)

__all__ = ["DeepSpeedAdapter"]

_COMMUNICATION = (
    "reduction of whole gradients",
    "reduction in stages 1 and 2",
    "reduction in stage 3",
    "reduction of a bucket in stage 3",
    "gathering of updated weights in stages 1 and 2",
    "gathering of updated weights with float32 gradients",
    "fetching of a module's parameters",
    "gathering of parameters",
)
"""Whatever these allocate is communication memory, unless an object says otherwise."""

_STAGES = {
    "bf16": "ZeRO 1 with whole gradients in float32",
    "stage 3": "ZeRO 3",
    "fused": "DeepSpeed without ZeRO",
    "unfused": "DeepSpeed without ZeRO",
}


class DeepSpeedAdapter:
    """Knows what DeepSpeed's optimizers and partitioned models hold."""

    library = "deepspeed"

    def __init__(self) -> None:
        self._owners: dict[str, weakref.WeakSet[Any]] = {}
        self._bucket: weakref.ref[torch.Tensor] | None = None
        """The reduce bucket that was told last."""

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Learn of its optimizers as they are made, and hook into what moves memory."""
        self._recorder = recorder
        private = self._private = Private(recorder, undo)
        classes = private.classes()
        for kind, owner in classes.items():
            known = self._owners[kind] = weakref.WeakSet(
                each for each in gc.get_objects() if type(each) is owner
            )
            # Once it is made, with all that it holds.
            watch_calls(
                recorder,
                undo,
                owner,
                "__init__",
                after=lambda made, *_, known=known: self._made(known, made),
            )
            for name, leave in ((STEP, self._leave_step), (SET_UP, self._leave_set_up)):
                if hasattr(owner, name):
                    watch_calls(recorder, undo, owner, name, before=self._enter_step, always=leave)
        for what in _COMMUNICATION:
            self._mark(what, Category.COMMUNICATION, undo, temporaries=Category.COMMUNICATION)
        self._mark("partitioning of a parameter", Category.WEIGHT, undo)
        # Those before which a gradient is where backward has put it.
        private.wrap("every gradient of stages 1 and 2", before=self._before_reduction)
        private.wrap("every gradient of stage 3", before=self._before_partition)
        private.wrap("end of a reduction in stages 1 and 2", before=self._before_release)
        private.wrap("fetching of a module's parameters", after=self._after_fetch)
        private.wrap("gathering of parameters", after=self._after_gather)
        private.wrap("gathering of several parameters at once", after=self._after_start)

    def simulate(self) -> None:
        """Have DeepSpeed run on tensors without data."""
        simulate_deepspeed()

    def holdings(self) -> Iterator[Holding]:
        """What its objects hold right now."""
        private = self._private
        for owner in self._alive("flat"):
            yield from holdings_of_flat(private, owner)
        for owner in self._alive("bf16"):
            yield from holdings_of_bf16(private, owner)
        for owner in self._alive("stage 3"):
            yield from holdings_of_stage_3(private, owner)
        for owner in self._alive("partitioned"):
            yield from holdings_of_module(private, private.read("partitioned", owner, "module"))
        for kind in ("fused", "unfused"):
            for owner in self._alive(kind):
                yield from holdings_of_fp16(private, owner, kind)

    def sharding(self) -> Iterator[str]:
        """Which stage its engines use."""
        for owner in self._alive("flat"):
            stage_2 = self._private.read("flat", owner, "partition_gradients")
            yield "ZeRO 1 or 2" if stage_2 is None else "ZeRO 2" if stage_2 else "ZeRO 1"
        for kind, text in _STAGES.items():
            if self._alive(kind):
                yield text

    def gauges(self) -> Iterable[Gauge]:
        """Memory on the host, where that is not the device that is recorded."""
        if self._recorder.source.device_type == "cpu":
            return []
        sizes = {True: 0, False: 0}
        seen = set()
        for tensor in self._kept():
            if tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage_pointer(storage) not in seen:
                    seen.add(storage_pointer(storage))
                    sizes[tensor.is_pinned()] += storage.nbytes()
        return [
            ("DeepSpeed host memory, pinned", "", sizes[True]),
            ("DeepSpeed host memory, pageable", "", sizes[False]),
        ]

    def _kept(self) -> Iterator[torch.Tensor]:
        """Its tensors, and those that its optimizers keep of them."""
        for holding in self.holdings():
            yield holding.tensor
            # Autograd writes none of these, so that another thread may read them at any time.
            if holding.category is Category.MASTER_WEIGHT and holding.tensor.grad is not None:
                yield holding.tensor.grad
        for kind in ("flat", "stage 3"):
            for owner in self._alive(kind):
                optimizer = self._private.read("any", owner, "optimizer")
                for state in list(getattr(optimizer, "state", {}).values()):
                    yield from (tensor for _, tensor in tensors_in(state))

    # -- hooks ---------------------------------------------------------------------------------

    def _made(self, known: weakref.WeakSet[Any], made: Any) -> None:
        known.add(made)
        self._recorder.take_stock()

    def _enter_step(self, optimizer: Any, *_: Any) -> None:
        self._recorder.enter_step(type(optimizer).__name__)

    def _leave_step(self, optimizer: Any, *_: Any) -> None:
        self._recorder.leave_step(True)

    def _leave_set_up(self, *_: Any) -> None:
        self._recorder.leave_step(False)

    def _before_reduction(self, optimizer: Any, parameter: torch.Tensor, *_: Any) -> None:
        """Its gradient is about to move into the bucket, and the bucket may be new."""
        self._tell_gradient(parameter)
        for bucket in buckets(self._private.read("flat", optimizer, "ipg_buckets")):
            if self._bucket is None or self._bucket() is not bucket.tensor:
                self._bucket = weakref.ref(bucket.tensor)
                self._tell(buckets(self._private.read("flat", optimizer, "ipg_buckets")))
            break

    def _before_partition(self, optimizer: Any, parameter: torch.Tensor, *_: Any) -> None:
        self._tell_gradient(parameter)

    def _tell_gradient(self, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:
            self._tell([Holding(gradient, Category.GRADIENT, parameter=parameter)])

    def _before_release(self, optimizer: Any, *_: Any) -> None:
        if optimizer not in self._owners["flat"]:  # its constructor is at work
            return
        self._tell(early_gradients(self._private, optimizer))

    def _after_fetch(self, coordinator: Any, module: torch.nn.Module, *_: Any) -> None:
        self._tell(gathered(self._private, module.parameters(recurse=False)))

    def _after_gather(self, partitioning: Any, parameters: Iterable[Any], *_: Any) -> None:
        self._tell(gathered(self._private, parameters))

    def _after_start(self, handle: Any, *_: Any) -> None:
        self._tell(holdings_of_gather(self._private, handle))

    def _tell(self, holdings: Iterable[Holding]) -> None:
        for each in holdings:
            self._recorder.hold(each)

    # -- helpers -------------------------------------------------------------------------------

    def _alive(self, kind: str) -> list[Any]:
        return list(self._owners.get(kind, ()))

    def _mark(
        self,
        what: str,
        survivors: Category,
        undo: ExitStack,
        temporaries: Category = Category.TEMPORARY,
    ) -> None:
        found = self._private.find(what)
        if found is not None:
            mark_scope(
                self._recorder,
                undo,
                *found,
                text=f"DeepSpeed: {what}",
                survivors=survivors,
                temporaries=temporaries,
            )
