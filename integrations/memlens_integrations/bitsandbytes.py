"""bitsandbytes: weights in 4 and 8 bits, and what it takes to read them.

A parameter holds its codes as its data. The scales stand beside it in Python objects, where no walk
over parameters and buffers finds them: in `quant_state` (4 bits: absmax and code book; where absmax is
quantised as well, its offset and a state of its own), or (8 bits) as `SCB` of the parameter, which the
layer's first call moves to its `state`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import torch

from memlens.events import WeightKind
from memlens.recording.recorder import Recorder
from memlens.recording.storages import tensors_in
from memlens.sources.base import Gauge

__all__ = ["BitsAndBytesAdapter"]


class BitsAndBytesAdapter:
    """Knows quantised parameters. As long as they are not quantised yet, they are like others."""

    library = "bitsandbytes"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Nothing to hook into."""

    def gauges(self) -> list[Gauge]:
        """Managed memory of paged optimizers, which moves between host and device as it is used.

        It comes from `cudaMallocManaged`, not from torch's allocator, and is wrapped as a CPU tensor.
        """
        functional = sys.modules.get("bitsandbytes.functional")
        manager = getattr(getattr(functional, "GlobalPageManager", None), "_instance", None)
        held = {
            tensor.data_ptr(): tensor.nbytes for tensor in getattr(manager, "paged_tensors", ())
        }
        return [("bitsandbytes managed memory", "", sum(held.values()))] if held else []

    def weights(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, WeightKind]]:
        """A module's quantised parameters, each with its scales."""
        from bitsandbytes.nn.modules import Int8Params, Params4bit

        for name, parameter in module._parameters.items():
            if isinstance(parameter, Params4bit):
                held = {"quant_state": getattr(parameter, "quant_state", None)}
            elif isinstance(parameter, Int8Params):
                own = getattr(parameter, "SCB", None)
                held = {"SCB": own if own is not None else _state_scales(module)}
            else:
                continue
            scales = list(tensors_in(held, name))
            if not scales:  # it is not quantised yet
                continue
            yield name, parameter, WeightKind.QUANTISED
            for text, tensor in scales:
                yield text, tensor, WeightKind.QUANTISED


def _state_scales(module: torch.nn.Module) -> object:
    return getattr(getattr(module, "state", None), "SCB", None)
