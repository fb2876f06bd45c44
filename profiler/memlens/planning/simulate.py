"""Runs a job in a process of its own in which CUDA is simulated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from memlens.catalogue.gpus import Gpu
from memlens.comparing.job import ComparedJob
from memlens.comparing.results import Result, Status
from memlens.comparing.trial import run_trial
from memlens.errors import SimulationError
from memlens.launch.environment import PLAN
from memlens.planning.ranks import Ranks

__all__ = ["DEFAULT_GPU", "STEPS", "outcome_notes", "simulate", "simulation_settings"]

DEFAULT_GPU = "A100 80GB"
"""What is simulated when nobody says what; it matters for what a job asks of its device."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ABORTED = "ended by SIGABRT"
STEPS = 3
"""The first makes the optimizer's state, the second has it all along, the third shows that it stays."""


def simulation_settings(
    gpu: Gpu, steps: int, allocator: str | None = None, ranks: Ranks | None = None
) -> dict[str, str]:
    """Environment variables for a process that simulates.

    Args:
        gpu: the card.
        steps: the job ends after so many training steps.
        allocator: settings as in PYTORCH_CUDA_ALLOC_CONF; None: those of this process.
        ranks: which rank it is; None: as the environment has it, or the only one.
    """
    plan = {
        "name": gpu.name,
        "total_bytes": gpu.total_bytes,
        "major": gpu.capability[0],
        "minor": gpu.capability[1],
        "multi_processors": gpu.multi_processors,
        "steps": steps,
    }
    if allocator is None:
        # The first that is set is the one that torch takes.
        allocator = next(filter(None, map(os.environ.get, _ALLOCATOR)), "")
    launched = {} if ranks is None else ranks.environment
    return {PLAN: json.dumps(plan), **dict.fromkeys(_ALLOCATOR, allocator), **launched}


def simulate(
    job: ComparedJob,
    gpu: Gpu,
    folder: Path,
    *,
    name: str = "as-is",
    stand_in: str | None = None,
    steps: int = STEPS,
    allocator: str | None = None,
    ranks: Ranks | None = None,
    options: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Result:
    """Simulate a job.

    Args:
        job: what to run.
        gpu: the card; its memory is no limit, see `memlens.planning.verdict.judge`.
        folder: new and empty; gets the capture, the job's output, and its notes.
        name: of the variant.
        stand_in: the optimizer that takes the place of the job's, for `parse_variant`; None: its own.
        steps: the job ends after so many training steps.
        allocator: settings as in PYTORCH_CUDA_ALLOC_CONF; None: those of this process.
        ranks: which rank it is; None: as the environment has it, or the only one.
        options: for `memlens run`, beside the device.
        tell: called with the last line of the job's output, every now and then.

    Returns:
        What the run showed; its notes say what was not done as the job has it.

    Raises:
        SimulationError: the job does something that cannot be simulated.
    """
    environment = simulation_settings(gpu, steps, allocator, ranks)
    words = ("--device", "simulated", *options)
    result = run_trial(job, name, stand_in, folder, words, tell, environment)
    notes, error = outcome_notes(Path(result.run)) if result.run else ((), "")
    if error:
        raise SimulationError(error)
    if result.status is Status.OK:
        return replace(result, notes=(*result.notes, *notes))
    if result.reason == _ABORTED:
        # By torch's device guard in Python, when an exception passes it.
        result = replace(result, reason=f"{_ABORTED}: an exception was raised within backward")
    if notes:
        # One of them is often the cause: a checkpoint that was not saved cannot be loaded.
        result = replace(result, reason=f"{result.reason} (other than really: {'; '.join(notes)})")
    return result


def outcome_notes(run: Path) -> tuple[tuple[str, ...], str]:
    """What the processes of a simulation noted, and what ended it (empty: nothing)."""
    found = [json.loads(path.read_text()) for path in sorted(run.glob("simulation-*.json"))]
    notes = tuple(dict.fromkeys(note for each in found for note in each["notes"]))
    return notes, next((each["error"] for each in found if each["error"]), "")
