"""Environment variables between `memlens run` and the processes of the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from memlens.options import Options

__all__ = [
    "MAIN_PID",
    "PLAN",
    "RUN",
    "SHARDING",
    "VARIABLES",
    "VARIANT",
    "VARIANT_OUT",
    "job_environment",
]

RUN = "MEMLENS_RUN"
MAIN_PID = "MEMLENS_MAIN_PID"
VARIANT = "MEMLENS_VARIANT"
VARIANT_OUT = "MEMLENS_VARIANT_OUT"
SHARDING = "MEMLENS_SHARDING"
PLAN = "MEMLENS_PLAN"

VARIABLES = {
    "MEMLENS_OUT": "output folder or URL, as --out",
    "MEMLENS_STEPS": "steps to record, as --steps",
    "MEMLENS_STACKS": "0: no Python stacks, as --no-stacks",
    "MEMLENS_STACK_DEPTH": "innermost Python frames kept, as --stack-depth",
    "MEMLENS_DEVICE": "device whose allocator is recorded, as --device",
    "MEMLENS_OOM_ONLY": "1: write nothing unless CUDA memory runs out, as --oom-only",
    "MEMLENS_CPU_SOURCE": "hook, profiler or auto: how CPU memory is recorded",
    "MEMLENS_DISABLE": "1: record nothing; `memlens run` merely runs the job",
    "MEMLENS_DEBUG": "1: show tracebacks of memlens' own faults",
    "MEMLENS_RUN": "set for the job: the run's folder",
    "MEMLENS_UPLOAD": "set for the job: the URL to which each rank's folder is copied",
    "MEMLENS_MAIN_PID": "set for the job: the process that is recorded from its first line on",
    "MEMLENS_VARIANT": "set by `memlens compare`: the optimizer that takes the place of the job's",
    "MEMLENS_PLAN": "set by `memlens plan`: the card to simulate, and where to stop",
    "MEMLENS_VARIANT_OUT": "set by `memlens compare`: where processes say what they replaced",
    "MEMLENS_SHARDING": "set by `memlens compare`: the stage of ZeRO, or fsdp, that the job trains under",
}
"""What `memlens run --help` lists."""


def job_environment(
    run: Path, options: Options, *, main: bool, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment in which the job's processes record themselves.

    Args:
        run: the run's folder.
        options: what to record.
        main: the process that `exec` makes of this one is a script, not a launcher: it is recorded
            whether or not it trains a model.
        environment: what to start from.
    """
    inject = str(Path(__file__).parent / "inject")
    old = environment.get("PYTHONPATH")
    job = dict(environment)
    job.update(options.to_environment())
    job["PYTHONPATH"] = inject if not old else f"{inject}{os.pathsep}{old}"
    job.pop("MEMLENS_OUT", None)  # it may be the place where the run is, and it is not asked again
    job[RUN] = str(run)
    if main:
        job[MAIN_PID] = str(os.getpid())
    else:
        job.pop(MAIN_PID, None)
    return job
