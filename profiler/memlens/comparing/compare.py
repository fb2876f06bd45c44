"""A comparison: every variant in turn, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from memlens.catalogue.variant import Variant
from memlens.comparing.job import ComparedJob
from memlens.comparing.results import Comparison, Result, Status
from memlens.comparing.tries import Measured, Runner, Trial, try_one
from memlens.disk.runs import DEFAULT_FOLDER
from memlens.errors import UsageError

__all__ = ["Progress", "compare", "compare_trials", "trials_of"]


class Progress(Protocol):
    """Told how far a comparison has come."""

    def begin(self, name: str) -> None:
        """A variant starts."""

    def tell(self, line: str) -> None:
        """The job has printed a line."""

    def end(self, result: Result) -> None:
        """A variant is done, in whichever way."""


def trials_of(job: ComparedJob, variants: Sequence[Variant]) -> list[Trial]:
    """The same job under each variant; one that is named twice runs once."""
    return list({each.name: Trial(each.name, job, each) for each in variants}.values())


def compare_trials(
    trials: Sequence[Trial],
    *,
    baseline: str,
    shown: str,
    folder: Path,
    runner: Runner,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run trials one after the other (together they would take time and memory from each other).

    Args:
        trials: in the order in which to run and show them.
        baseline: name of the one that the others are measured against.
        shown: what to call the job.
        folder: gets a folder for each variant; results found there are used again.
        runner: how.
        fresh: run all anew.
        progress: told how far it has come.

    Raises:
        UsageError: the job constructs no optimizer that could be replaced.
    """
    import torch

    results: list[Result] = []
    for trial in trials:
        if progress is not None:
            progress.begin(trial.name)
        tell: Callable[[str], None] = (lambda _: None) if progress is None else progress.tell
        result = try_one(trial, folder, runner, fresh=fresh, tell=tell)
        results.append(result)
        if progress is not None:
            progress.end(result)
        if result.status is Status.REFUSED and not result.replaced and result.run:
            # It ran to its end without an optimizer: the same awaits all others.
            raise UsageError(f"cannot compare {shown}: {result.reason}")
    return Comparison(
        job=shown,
        baseline=baseline,
        results=tuple(results),
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
