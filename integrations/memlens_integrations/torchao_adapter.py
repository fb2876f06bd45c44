"""torchao: what its optimizers' compiled step takes, in a simulation, which compiles nothing.

Eager, the step makes a dozen copies of a layer, most of them in fp32 or int64; compiled, it is a kernel
or two. What the compiler allocates between those depends on how a moment is stored, and on nothing
else.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch

from memlens.recording.recorder import Recorder
from memlens.simulation.disguise.imports import when_imported
from memlens.simulation.process import current_simulation

__all__ = ["TorchAOAdapter", "compiled_bytes"]

_HOME = "torchao.optim.adam"
_NOTE = (
    "torchao's step is taken to be compiled, with the buffers that torch.compile plans for a CPU; "
    "on CUDA it may need less"
)
_FLOAT, _INDEX = 4, 8


class TorchAOAdapter:
    """Knows the compiled step of the optimizers."""

    library = "torchao"

    def install(self, recorder: Recorder, undo: ExitStack) -> None:
        """Nothing to hook into."""

    def simulate(self) -> None:
        """Have the step of a parameter take what the compiled one takes, and do nothing else."""
        when_imported(_HOME, _replace_step)


def _replace_step() -> None:
    home: Any = sys.modules[_HOME]
    eager: Any = home.single_param_adam

    def single_param_adam(
        p: torch.Tensor,
        grad: torch.Tensor,
        step: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        max_exp_avg_sq: torch.Tensor | None,
        *settings: Any,
    ) -> None:
        simulated = current_simulation()
        if simulated is None or p.device.type != "cuda":
            eager(p, grad, step, exp_avg, exp_avg_sq, max_exp_avg_sq, *settings)
            return
        simulated.notes.add(_NOTE)
        moments = [each for each in (exp_avg, exp_avg_sq, max_exp_avg_sq) if each is not None]
        simulated.memory.pass_through([size for each in moments for size in compiled_bytes(each)])

    home.single_param_adam = single_param_adam


def compiled_bytes(moment: torch.Tensor) -> list[int]:
    """Buffers of the compiled step for one moment; none where the moment is not quantised.

    Read off the code that torch.compile of torch 2.13 writes for torchao 0.18 (TORCH_LOGS=output_code):
    new scales; the moment divided by them in fp32, which a search through the table reads again and
    again (fp8 has no table); and with 4 bits also the codes that it finds, as the int64 of an index,
    until two of them are packed into a byte, and the old ones, unpacked into a byte each.
    """
    scale: torch.Tensor | None = getattr(moment, "scale", None)
    if scale is None:
        return []
    count = moment.numel()
    sizes = [scale.numel() * _FLOAT]
    if hasattr(moment, "qmap"):
        sizes.append(count * _FLOAT)
        if moment.codes.numel() < count:  # type: ignore[attr-defined]
            sizes += [count * _INDEX, count]
    return sizes
