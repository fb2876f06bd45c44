"""Runs each job of the matrix twice, for real and planned, and hands over how far the two are apart.

Real runs have the GPU to themselves, one after the other, unless it has room for several. Plans need
none, and several run at a time beside them. Without a GPU a second plan takes the real run's place: it
shows that all this works, and that a job is the same to `memlens run` and to `memlens plan`; of a GPU it
shows nothing.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu.agreement import Figures, Row
from gpu.bench import FAIL, MEMLENS, MISSING, SKIPPED, Bench, Found, Stopped
from gpu.matrix import STEPS, Job
from gpu.plans_table import PlansTable

__all__ = ["DEFAULT_CARD", "Planner", "recorded_runs", "run_plans"]

DEFAULT_CARD = ("--gpu", "H100 80GB")
LIMIT_S = 240.0
SECONDS = 25
"""What a job takes on a GPU, about; it is left out where there is less time."""


@dataclass(frozen=True)
class Side:
    """What came of one of the two."""

    figures: Figures
    seconds: float
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Planner:
    """Runs jobs on both sides."""

    bench: Bench
    card: Sequence[str] = DEFAULT_CARD
    """The machine's card, in words of `memlens plan`."""
    together: int = 1
    """Real runs at a time. What a process allocates is its own; together they must fit the card."""
    recorded: Mapping[str, Found] | None = None
    """Real runs of another time, by title, as the table's JSON has them; None: run them."""
    gpu: threading.Semaphore = field(init=False)
    """Whose turn it is on the GPU."""

    def __post_init__(self) -> None:
        self.gpu = threading.BoundedSemaphore(self.together)

    def row(self, job: Job) -> Row:
        """A job on both sides, whatever happens."""
        missing = [name for name in job.needs if find_spec(name) is None]
        if missing:
            return Row(job, MISSING, problems=(f"{missing[0]} is not installed",))
        if self.bench.left_s < (SECONDS if self.recorded is None else SECONDS / 2):
            return Row(job, SKIPPED, problems=("no time left",))
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(_attempt, side, job) for side in (self.real, self.planned)]
            real, planned = (each.result() for each in both)
        if isinstance(real, Side) and isinstance(planned, Side):
            return Row.compare(
                job,
                real.figures,
                planned.figures,
                real_s=real.seconds,
                plan_s=planned.seconds,
                problems=real.problems,
                notes=planned.notes,
            )
        return _half_a_row(job, real, planned)

    def planned(self, job: Job) -> Side:
        """What `memlens plan` says of it.

        Raises:
            Stopped: it says nothing.
        """
        out = self.bench.place("plan")
        words = ("--out", str(out), "--optimizer", job.optimizer, "--steps", str(STEPS))
        # Nothing that a plan might do on the card can then be taken for a doing of the real job.
        sight = {} if job.in_sight else {"CUDA_VISIBLE_DEVICES": ""}
        began = time.monotonic()
        self.bench.run(
            [*MEMLENS, "plan", *self.card, *words, *job.words], environment=sight, limit_s=LIMIT_S
        )
        seconds = time.monotonic() - began
        found = self.examine(out / "run", "simulated")
        return Side(Figures.of(found), seconds, notes=_notes(out / "run"))

    def real(self, job: Job) -> Side:
        """What it took on the GPU, as the allocator and `memlens run` count it.

        Raises:
            Stopped: it came to no end.
        """
        if self.recorded is not None:
            told = self.recorded[job.title]
            return Side(Figures.from_json(told["real"]), told["real_s"])
        out = self.bench.place("real")
        environment: dict[str, str] = {}
        before: tuple[str, ...]
        if self.bench.is_cuda:
            out.mkdir(parents=True)
            before = (*MEMLENS, "run", "--device", "cuda", "--out", str(out / "run"))
            environment = {"MEMLENS_VARIANT": job.optimizer, "MEMLENS_VARIANT_OUT": str(out)}
        else:
            # One step more than there are: it would end the job when these are done.
            more = ("--optimizer", job.optimizer, "--steps", str(STEPS + 1))
            before = (*MEMLENS, "plan", *self.card, "--out", str(out), *more)
        words = shlex.join((*job.words, "--device", "cuda", "--steps", str(STEPS)))
        with self.gpu:
            began = time.monotonic()
            told = self.bench.job(
                "model", f"--words={words}", before=before, environment=environment, limit_s=LIMIT_S
            )
            seconds = time.monotonic() - began
        rank = self.examine(out / "run", "cuda" if self.bench.is_cuda else "simulated")
        return Side(Figures.of(rank), seconds, (*doubts(rank, told), *_not_replaced(out)))

    def examine(self, run: Path, source: str) -> Found:
        """What the capture of a run says of its one rank.

        Raises:
            Stopped: it is not a capture of such a run.
        """
        found = self.bench.job("examine", "--out", str(run))
        if found["source"] != source or len(found["ranks"]) != 1:
            text = (
                f"{len(found['ranks'])} captures of source {found['source']}, not one of {source}"
            )
            raise Stopped(FAIL, text)
        rank: Found = found["ranks"][0]
        return rank


def doubts(rank: Found, told: Found) -> tuple[str, ...]:
    """Why a real run's capture may not be what a plan is held against: its job says otherwise."""
    wrong = list(rank["problems"])
    if not rank["complete"]:
        wrong.append("the real run's capture is not complete")
    for key, name in (("peak_bytes", "peak"), ("reserved_peak_bytes", "reserved peak")):
        if rank[key] != told[key]:
            wrong.append(f"{name} {rank[key] or 0:,} B, torch.cuda told the job {told[key]:,} B")
    if len(rank["step_end_bytes"]) != STEPS:
        wrong.append(f"{len(rank['step_end_bytes'])} steps in the capture, {STEPS} in the job")
    return tuple(wrong)


def run_plans(planner: Planner, jobs: Sequence[Job], table: PlansTable, workers: int) -> None:
    """Run all jobs; each row is in the table as soon as it is known."""

    def one(job: Job) -> None:
        table.add(planner.row(job), planner.bench.elapsed_s)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(one, job) for job in jobs]:
                future.result()
        except BaseException:  # Ctrl-C: the pool would wait for all that is left
            planner.bench.end()
            raise


def _attempt(side: Any, job: Job) -> Side | Stopped:
    try:
        result: Side = side(job)
    except Stopped as stopped:
        return stopped
    except Exception as error:
        return Stopped(FAIL, f"{type(error).__name__}: {error}")
    return result


def _half_a_row(job: Job, real: Side | Stopped, planned: Side | Stopped) -> Row:
    verdicts = [
        (name, side.verdict)
        for name, side in (("run", real), ("plan", planned))
        if isinstance(side, Stopped)
    ]
    states = [verdict.state for _, verdict in verdicts]
    return Row(
        job,
        next((state for state in (FAIL, MISSING, SKIPPED) if state in states), FAIL),
        real.figures if isinstance(real, Side) else None,
        planned.figures if isinstance(planned, Side) else None,
        problems=tuple(f"{name}: {verdict.figures[0]}" for name, verdict in verdicts),
        log="\n".join(verdict.log for _, verdict in verdicts if verdict.log),
    )


def _notes(run: Path) -> tuple[str, ...]:
    """What a simulation did not do as the job has it."""
    found = [json.loads(path.read_text())["notes"] for path in run.glob("simulation-*.json")]
    return tuple(dict.fromkeys(note for notes in found for note in notes))


def _not_replaced(folder: Path) -> tuple[str, ...]:
    """Whether the real job has trained with the optimizer that it names."""
    found = [json.loads(path.read_text()) for path in folder.glob("process-*.json")]
    if any(each["replaced"] for each in found):
        return ()
    return ("the run kept its own optimizer",)


def recorded_runs(path: Path) -> tuple[dict[str, Found], Found, Sequence[str]]:
    """Real runs by title, what they were measured on, and that card in words of `memlens plan`."""
    told = json.loads(path.read_text())
    if told["planned_twice"]:
        raise Stopped(FAIL, f"{path} has no real runs")
    facts = told["facts"]
    name, _, _ = facts["planned as"].partition(" with ")
    jobs = {each["job"]: each for each in told["jobs"] if each.get("real")}
    return jobs, facts, ("--gpu", name)
