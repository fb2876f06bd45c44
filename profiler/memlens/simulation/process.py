"""Makes this process one in which `cuda` is simulated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from memlens.allocator.settings import AllocatorSettings
from memlens.errors import SourceError
from memlens.simulation.autocast import install_autocast
from memlens.simulation.backend import DEVICE_TYPE, register_accelerator
from memlens.simulation.disguise.cuda_api import Card, install_cuda
from memlens.simulation.disguise.distributed import install_distributed
from memlens.simulation.disguise.host import install_host
from memlens.simulation.disguise.parameters import allow_subclasses
from memlens.simulation.disguise.tensors import disguise_tensors, replace_kernels
from memlens.simulation.dispatch import Simulation
from memlens.simulation.host_memory import HostMemory
from memlens.simulation.kernels.composites import keep_whole
from memlens.simulation.kernels.softmax import convert_in_softmax
from memlens.simulation.memory import DeviceMemory
from memlens.simulation.problems import Notes
from memlens.sources.cuda_workspaces import default_workspace_bytes, lt_workspace_bytes
from memlens.torch_private import missing_simulation_features

__all__ = ["Simulated", "begin_simulation", "current_simulation"]


@dataclass(frozen=True)
class Simulated:
    """What a simulated process has."""

    memory: DeviceMemory
    host: HostMemory
    notes: Notes
    settings: dict[str, Any]
    """Of the allocator, as a real one's snapshot has them."""
    card: Card


_current: Simulated | None = None


def current_simulation() -> Simulated | None:
    """What simulates this process; None: nothing does."""
    return _current


def begin_simulation(card: Card, world_size: int = 1) -> Simulated:
    """From here on, on this thread, tensors have no data. There is no way back.

    Args:
        card: what `cuda` is to be.
        world_size: how many ranks there would be; this one is the first.

    Raises:
        SourceError: this torch lacks what it takes.
    """
    global _current
    if _current is not None:
        return _current
    missing = missing_simulation_features()
    if missing:
        raise SourceError(
            f"cannot simulate with torch {torch.__version__}: it lacks {', '.join(missing)}; "
            "2.13 has them"
        )
    settings = AllocatorSettings.from_text(
        os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
    )
    memory = DeviceMemory(settings, card.total_memory)
    notes = Notes()
    register_accelerator()
    keep_whole()
    install_autocast(DEVICE_TYPE)
    convert_in_softmax()
    capability = (card.major, card.minor)
    simulation = Simulation(
        memory,
        notes,
        default_workspace_bytes(os.environ, capability),
        lt_workspace_bytes(os.environ),
    )
    install_cuda(memory, card, notes)
    install_host(simulation)
    install_distributed(world_size)
    disguise_tensors(simulation)
    allow_subclasses()
    replace_kernels()
    simulation.__enter__()  # type: ignore[no-untyped-call]
    simulation.in_place.measure()
    simulation.host.peaks()  # what was measured with is not the job's
    _current = Simulated(memory, simulation.host, notes, settings.to_snapshot(), card)
    return _current
