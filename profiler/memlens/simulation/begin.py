"""Begins the simulation in a process that `memlens plan` has started, and writes what came of it."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memlens.simulation.disguise.cuda_api import Card
from memlens.simulation.process import begin_simulation

__all__ = ["begin_planned"]


class _EnoughSteps(SystemExit):
    """The steps that were asked for are done; the job ends as if it had said so itself."""


def begin_planned(text: str, run: Path) -> Callable[[int], None]:
    """Simulate in this process, and write notes at its end.

    Args:
        text: what `memlens.planning.simulate.simulation_settings` made.
        run: gets the notes.

    Returns:
        What is to be called when a training step begins: it ends the job after enough of them.
    """
    plan: dict[str, Any] = json.loads(text)
    simulated = begin_simulation(
        Card(
            name=plan["name"],
            major=plan["major"],
            minor=plan["minor"],
            total_memory=plan["total_bytes"],
            multi_processor_count=plan["multi_processors"],
            max_threads_per_multi_processor=2048,
            warp_size=32,
            is_integrated=False,
            is_multi_gpu_board=False,
            gcnArchName="",
        ),
        world_size=int(os.environ.get("WORLD_SIZE") or 1),
    )

    def on_step(step: int) -> None:
        if step >= plan["steps"]:
            raise _EnoughSteps(0)

    def write() -> None:
        outcome = {"error": simulated.notes.error, "notes": simulated.notes.sentences()}
        Path(run, f"simulation-{os.getpid()}.json").write_text(json.dumps(outcome))

    atexit.register(write)
    simulated.notes.on_error = write
    return on_step
