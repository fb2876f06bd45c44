"""One try: a job under one variant, run in some way, unless an earlier call has done just that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from memlens.catalogue.combinations import ShardingMode, cautions, refusal
from memlens.catalogue.installed import missing_libraries, version_of
from memlens.catalogue.row import Row
from memlens.catalogue.variant import Variant
from memlens.comparing.job import ComparedJob, fingerprint
from memlens.comparing.keep import find, keep, new_folder
from memlens.comparing.results import Result, Status
from memlens.comparing.trial import run_trial
from memlens.errors import MissingDependencyError

__all__ = [
    "Measured",
    "Runner",
    "Tell",
    "Trial",
    "finish",
    "prepare",
    "refused",
    "try_one",
]

_DEEPSPEED = "deepspeed"
Tell = Callable[[str], None]
"""Called with the last line of the job's output, every now and then."""


@dataclass(frozen=True)
class Trial:
    """One variant to run."""

    name: str
    job: ComparedJob
    variant: Variant | None = None
    """What takes the place of the job's optimizer; None: nothing is replaced, or looked for."""
    sharding: ShardingMode | None = None
    """How its ranks are to share the training state; None: as the job has it."""

    @property
    def row(self) -> Row | None:
        """The variant's, of the catalogue; None: it has none."""
        return None if self.variant is None else self.variant.row

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
    """Run a trial here, or take what an earlier call has found.

    Args:
        trial: what to run.
        folder: gets a folder of its own for it.
        runner: how.
        fresh: run it in any case.
        tell: called with the last line of the job's output.
    """
    ready = prepare(trial, folder, runner, fresh=fresh)
    if isinstance(ready, Result):
        return ready
    return finish(trial, ready, runner.run(trial, ready, tell))


def prepare(trial: Trial, folder: Path, runner: Runner, *, fresh: bool) -> Result | Path:
    """What there is to know of a trial before it runs.

    Returns:
        A result that takes no run: it is refused, or an earlier call has found it. Otherwise a new
        folder to run it in.
    """
    if reason := _refusal(trial, runner):
        return refused(trial, reason)
    key = fingerprint(trial.job, trial.variant, runner.options, runner.environment)
    if not fresh and (kept := find(folder, trial.name, key)) is not None:
        return kept
    return new_folder(folder, trial.name, key)


def finish(trial: Trial, place: Path, result: Result) -> Result:
    """Complete what a runner has found, and keep it."""
    row, mode = trial.row, trial.sharding
    known = cautions(row, mode) if row is not None and mode is not None else ()
    result = replace(_labelled(trial, result), notes=(*known, *result.notes))
    keep(place, result)
    return result


def refused(trial: Trial, reason: str) -> Result:
    """A trial that is not run."""
    return _labelled(trial, Result(trial.name, Status.REFUSED, reason))


def _labelled(trial: Trial, result: Result) -> Result:
    optimizer = "" if trial.variant is None else trial.variant.name
    mode = trial.sharding
    return replace(result, optimizer=optimizer, sharding="" if mode is None else mode.value)


def _refusal(trial: Trial, runner: Runner) -> str:
    row, mode, variant = trial.row, trial.sharding, trial.variant
    if mode is not None and mode.stage is not None and version_of(_DEEPSPEED) is None:
        return str(MissingDependencyError(_DEEPSPEED, "train under ZeRO", _DEEPSPEED))
    if row is None:
        return ""
    together = ""
    if mode is not None and variant is not None:
        together = refusal(row, mode, no_retain_grad=variant.no_retain_grad)
    return together or runner.refusal(row) or _missing(row)


def _missing(row: Row) -> str:
    missing = missing_libraries(row)
    return str(MissingDependencyError(missing[0], f"run {row.name}", row.extra)) if missing else ""
