"""One try: a job under one variant, run in some way, unless an earlier call has done just that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from memlens.catalogue.installed import missing_libraries
from memlens.catalogue.row import Row
from memlens.catalogue.variant import Variant
from memlens.comparing.job import ComparedJob, fingerprint
from memlens.comparing.keep import find, keep, new_folder
from memlens.comparing.results import Result, Status
from memlens.comparing.trial import run_trial
from memlens.errors import MissingDependencyError

__all__ = ["Measured", "Runner", "Tell", "Trial", "try_one"]

Tell = Callable[[str], None]
"""Called with the last line of the job's output, every now and then."""


@dataclass(frozen=True)
class Trial:
    """One variant to run."""

    name: str
    job: ComparedJob
    variant: Variant | None = None
    """What takes the place of the job's optimizer; None: nothing is replaced, or looked for."""

    @property
    def stand_in(self) -> str | None:
        """The same for `parse_variant` in the job's process."""
        variant = self.variant
        return None if variant is None or variant.row is None else variant.name


class Runner(Protocol):
    """A way to run a trial."""

    @property
    def device(self) -> str:
        """What it runs on, for people."""

    @property
    def simulated(self) -> bool:
        """Nothing is trained."""

    @property
    def options(self) -> Sequence[str]:
        """For `memlens run`; results depend on them."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for the job; results depend on them."""

    def refusal(self, row: Row) -> str:
        """Why a row cannot run in this way; empty: it can."""

    def run(self, trial: Trial, folder: Path, tell: Tell) -> Result:
        """Run it; the folder is new and empty."""


@dataclass(frozen=True)
class Measured:
    """The job as it is, on this machine."""

    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    simulated: bool = False

    def refusal(self, row: Row) -> str:
        """The device is that of this machine."""
        import torch

        if not row.runs_on_cpu and not torch.accelerator.is_available():
            return f"does not run on the CPU: {row.cpu}"
        return ""

    def run(self, trial: Trial, folder: Path, tell: Tell) -> Result:
        """Run it in a process of its own."""
        return run_trial(
            trial.job, trial.name, trial.stand_in, folder, self.options, tell, self.environment
        )


def try_one(trial: Trial, folder: Path, runner: Runner, *, fresh: bool, tell: Tell) -> Result:
    """Run a trial, or take what an earlier call has found.

    Args:
        trial: what to run.
        folder: gets a folder of its own for it.
        runner: how.
        fresh: run it in any case.
        tell: called with the last line of the job's output.
    """
    row = None if trial.variant is None else trial.variant.row
    if row is not None and (reason := runner.refusal(row) or _missing(row)):
        return Result(trial.name, Status.REFUSED, reason)
    key = fingerprint(trial.job, trial.variant, runner.options, runner.environment)
    if not fresh and (kept := find(folder, trial.name, key)) is not None:
        return kept
    place = new_folder(folder, trial.name, key)
    result = runner.run(trial, place, tell)
    keep(place, result)
    return result


def _missing(row: Row) -> str:
    missing = missing_libraries(row)
    return str(MissingDependencyError(missing[0], f"run {row.name}", row.extra)) if missing else ""
