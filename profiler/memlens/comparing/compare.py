"""A comparison: every variant in turn, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from memlens.catalogue.combinations import ShardingMode
from memlens.catalogue.variant import Variant
from memlens.comparing.job import ComparedJob
from memlens.comparing.results import Comparison, Result
from memlens.comparing.schedule import InTurn, Schedule, Work
from memlens.comparing.tries import Measured, Runner, Trial, finish, prepare, refused
from memlens.disk.runs import DEFAULT_FOLDER
from memlens.errors import UsageError
from memlens.launch.environment import SHARDING

__all__ = ["Progress", "compare", "compare_trials", "sharded_trials", "trials_of"]


class Progress(Protocol):
    """Told how far a comparison has come."""

    def begin(self, name: str) -> None:
        """A variant starts."""

    def tell(self, line: str) -> None:
        """The job has printed a line."""

    def end(self, result: Result) -> None:
        """A variant is done, in whichever way."""


class _Silent:
    """Nobody wants to know."""

    def begin(self, name: str) -> None:
        pass

    def tell(self, line: str) -> None:
        pass

    def end(self, result: Result) -> None:
        pass


def trials_of(job: ComparedJob, variants: Sequence[Variant]) -> list[Trial]:
    """The same job under each variant; one that is named twice runs once."""
    return list({each.name: Trial(each.name, job, each) for each in variants}.values())


def sharded_trials(
    jobs: Mapping[ShardingMode, ComparedJob], variants: Sequence[Variant]
) -> list[Trial]:
    """Every variant under every kind of sharding, named `adamw@zero2`.

    Args:
        jobs: the job as it is started for each kind.
        variants: what takes the place of its optimizer.
    """
    found = {}
    for mode, job in jobs.items():
        told = replace(job, environment={**job.environment, SHARDING: mode.value})
        for variant in variants:
            name = f"{variant.name}@{mode.value}"
            found[name] = Trial(name, told, variant, mode)
    return list(found.values())


def compare_trials(
    trials: Sequence[Trial],
    *,
    baseline: str,
    shown: str,
    folder: Path,
    runner: Runner,
    fresh: bool = False,
    progress: Progress | None = None,
    schedule: Schedule | None = None,
) -> Comparison:
    """Run trials, and put their results together.

    Args:
        trials: in the order in which to run and show them.
        baseline: name of the one that the others are measured against.
        shown: what to call the job.
        folder: gets a folder for each variant; results found there are used again.
        runner: how.
        fresh: run all anew.
        progress: told how far it has come.
        schedule: where and when they run; None: here, one after the other.

    Raises:
        UsageError: the job constructs no optimizer that could be replaced.
    """
    import torch

    told = _Silent() if progress is None else progress
    results: dict[str, Result] = {}
    hopeless: dict[bool, str] = {}
    """Of ZeRO (True) and of FSDP: why the job cannot run under it at all."""

    def enter(result: Result) -> None:
        results[result.name] = result
        told.end(result)

    def waiting() -> Iterator[Work]:
        for trial in trials:
            told.begin(trial.name)
            mode = trial.sharding
            if mode is not None and (reason := hopeless.get(mode.stage is not None)):
                enter(refused(trial, reason))
                continue
            ready = prepare(trial, folder, runner, fresh=fresh)
            if isinstance(ready, Result):
                enter(ready)
            else:
                yield Work(trial, ready)

    for work, found in (schedule or InTurn()).run(waiting(), runner, told.tell):
        result = finish(work.trial, work.place, found)
        enter(result)
        if not result.is_hopeless:
            continue
        if work.trial.sharding is None:
            raise UsageError(f"cannot compare {shown}: {result.reason}")
        hopeless[work.trial.sharding.stage is not None] = result.reason
    return Comparison(
        job=shown,
        baseline=baseline,
        results=tuple(results[trial.name] for trial in trials),
        folder=str(folder),
        torch_version=torch.__version__,
        device=runner.device,
        simulated=runner.simulated,
    )


def compare(
    jobs: Mapping[str, Callable[[], Any]],
    *,
    baseline: str | None = None,
    out: str | os.PathLike[str] | None = None,
    stacks: bool = True,
    fresh: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Run each of several functions in a process of its own, and compare their memory.

    ::

        memlens.compare({"adamw": train_with_adamw, "mine": train_with_mine})

    Args:
        jobs: name to a function without arguments that trains; it is pickled by value, with all that
            it refers to, so functions of a notebook will do.
        baseline: name of the one that the others are measured against. Default: the first.
        out: folder for captures and results. Default: one under `memlens-runs`.
        stacks: whether to record the Python stack of each allocation.
        fresh: run all anew, also what an earlier call with the same `out` has found.
        progress: told how far it has come.

    Raises:
        UsageError: there are no jobs, or the baseline is none of them.
    """
    import cloudpickle

    if not jobs:
        raise UsageError("nothing to compare; give at least one function")
    baseline = next(iter(jobs)) if baseline is None else baseline
    if baseline not in jobs:
        raise UsageError(f"the baseline {baseline!r} is none of {', '.join(jobs)}")
    folder = Path(DEFAULT_FOLDER, "compare-functions") if out is None else Path(out)
    folder = folder.absolute()
    pickles = folder / "functions"
    pickles.mkdir(parents=True, exist_ok=True)
    trials = []
    for number, (name, function) in enumerate(jobs.items()):
        path = pickles / f"{number}.pickle"
        path.write_bytes(cloudpickle.dumps(function))
        words = ("-m", "memlens.comparing.call", str(path))
        trials.append(Trial(name, ComparedJob(words, name, name, files=(path,))))
    comparison = compare_trials(
        trials,
        baseline=baseline,
        shown=", ".join(jobs),
        folder=folder,
        runner=Measured(() if stacks else ("--no-stacks",)),
        fresh=fresh,
        progress=progress,
    )
    return replace(comparison, folder=str(folder))
