"""peft: which weights are the adapter's, whether they train at the moment or not.

Layers of every method (LoRA, IA3, OFT, ...) say which of their submodules and parameters hold adapter
weights, in `adapter_layer_names`; so do the wrappers of modules that are trained and saved with the
adapter (`modules_to_save`). Methods that learn a prompt keep it in the model's `prompt_encoder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from operator import attrgetter

import torch

from memlens.events import WeightKind
from memlens.recording.recorder import Recorder

__all__ = ["PeftAdapter"]


class PeftAdapter:
    """Tells the weights of adapters from those of the model that they are added to."""

    library = "peft"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Nothing to hook into."""

    def weights(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, WeightKind]]:
        """Weights of the adapters in a layer, by the name that the layer has for them."""
        for layer in _layer_names(module):
            try:
                held = attrgetter(layer)(module)
            except AttributeError:  # names that only some layers of a class have
                continue
            if isinstance(held, torch.nn.Parameter):
                yield layer, held, WeightKind.ADAPTER
            elif isinstance(held, torch.nn.Module):
                for name, parameter in held.named_parameters(prefix=layer):
                    yield name, parameter, WeightKind.ADAPTER


def _layer_names(module: torch.nn.Module) -> tuple[str, ...]:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return tuple(module.adapter_layer_names)
    if isinstance(module, PeftModel) and "prompt_encoder" in module._modules:
        return ("prompt_encoder",)
    return ()
