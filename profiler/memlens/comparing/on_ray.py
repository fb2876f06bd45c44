"""Trials as tasks of a Ray cluster. Nothing else in memlens imports Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import queue
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from memlens.catalogue.row import Row
from memlens.comparing.results import Result, Status
from memlens.comparing.schedule import Machines, Work
from memlens.comparing.tries import Runner, Tell, Trial
from memlens.errors import MissingDependencyError, UsageError

__all__ = ["OnRay", "run_there"]

_STOP_S = 10
"""How long tasks get to stop their jobs."""
_KNOCK_S = 10
"""How long a cluster may take to answer at all."""
_STORE_BYTES = 100 << 20
"""What a Ray of our own may keep for results, which are small; its default is a third of the memory."""


@dataclass(frozen=True)
class _Slot:
    """Where one trial runs at a time."""

    node: str
    cpus: int
    gpus: int


class OnRay:
    """Runs each trial as a task that has a machine to itself, as many at once as there are machines.

    The folder with the job and that for results are on a file system which all machines share.

    Args:
        address: as `ray.init` takes it: `auto` is the cluster that is running here, `local` starts one
            on this machine alone, and `ray://HOST:10001` is one elsewhere.
        cpus: of a task; several tasks then share a machine, and its GPUs. None: all that it has.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, address: str, cpus: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError("ray", "run trials on a cluster", "ray") from error
        self._ray: Any = ray
        self._address = address
        self._cpus = cpus

    def run(
        self, work: Iterable[Work], runner: Runner, tell: Tell
    ) -> Iterator[tuple[Work, Result]]:
        """See `memlens.comparing.schedule.Schedule`.

        Raises:
            UsageError: there is no such cluster, or a machine does not see the folders.
        """
        with self._connected():
            yield from self._on(self._slots(), work, runner)

    @contextlib.contextmanager
    def machines(self) -> Iterator[Machines]:
        """See `memlens.comparing.schedule.Machines`; those that still run in the end are stopped.

        Raises:
            UsageError: there is no such cluster.
        """
        with self._connected():
            found = _RayMachines(self, self._slots())
            try:
                yield found
            finally:
                self._stop(found.close())

    def _on(
        self, free: list[_Slot], work: Iterable[Work], runner: Runner
    ) -> Iterator[tuple[Work, Result]]:
        ray = self._ray
        waiting = iter(work)
        running: dict[Any, tuple[Work, _Slot]] = {}
        is_over = False
        try:
            while True:
                while free and not is_over:
                    if (each := next(waiting, None)) is None:
                        is_over = True
                        break
                    slot = free.pop(0)
                    running[self.start(slot, each, runner)] = (each, slot)
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for task in done:
                    each, slot = running.pop(task)
                    free.append(slot)
                    yield each, self.outcome(task, each)
        finally:
            self._stop(list(running))

    def _stop(self, tasks: list[Any]) -> None:
        """Left early: jobs must not go on behind our back."""
        for task in tasks:
            self._ray.cancel(task)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_S)

    def start(self, slot: _Slot, work: Work, runner: Runner) -> Any:
        """Start a task in a slot that is free."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(run_there).options(
            num_cpus=slot.cpus,
            num_gpus=slot.gpus,
            max_retries=0,  # its folder is no longer empty
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
        )
        return task.remote(work, runner, os.getcwd(), _variables())

    def outcome(self, task: Any, work: Work) -> Result:
        """What came of a task; waits for it.

        Raises:
            UsageError: the machine does not see the folders.
        """
        try:
            found: Result | str = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"Ray did not run it to its end: {type(error).__name__}: {lines[-1]}"
            return Result(work.trial.name, Status.FAILED, reason)
        if isinstance(found, str):
            raise UsageError(found)
        return found

    def _slots(self) -> list[_Slot]:
        slots = []
        for node in self._ray.nodes():
            cpus = int(node["Resources"].get("CPU", 0))
            gpus = int(node["Resources"].get("GPU", 0))
            if not node["Alive"] or not cpus:
                continue
            share = 1 if self._cpus is None else cpus // self._cpus
            one = _Slot(node["NodeID"], self._cpus or cpus, gpus // max(share, 1))
            slots += [one] * share
        if not slots:
            wanted = "CPUs" if self._cpus is None else f"{self._cpus} CPUs"
            raise UsageError(
                f"no machine of the Ray cluster {self._address} has {wanted}; give a smaller --ray-cpus"
            )
        return slots

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        ray = self._ray
        if ray.is_initialized():  # the program that calls memlens has its own
            yield
            return
        own: dict[str, Any] = {}
        if self._address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        try:
            _knock(self._address)
            ray.init(self._address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise UsageError(
                f"no Ray cluster at {self._address}: {text[:200]}; start one with `ray start --head`, "
                "or give --ray local"
            ) from None
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Ask whether anybody listens; Ray itself would go on asking for minutes.

    Raises:
        ConnectionError: nobody does.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port
    except ValueError as error:
        raise ConnectionError(str(error)) from None
    if host and port:
        try:
            socket.create_connection((host, port), timeout=_KNOCK_S).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from None


class _RayMachines:
    """Slots of a cluster, for threads that have one trial run and wait for it."""

    def __init__(self, cluster: OnRay, slots: list[_Slot]) -> None:
        self.count = len(slots)
        self._cluster = cluster
        self._free: queue.Queue[_Slot] = queue.Queue()
        for slot in slots:
            self._free.put(slot)
        self._running: set[Any] = set()
        self._is_closed = False

    def place(self, runner: Runner) -> Runner:
        return _There(runner, self)

    def run(self, work: Work, runner: Runner) -> Result:
        slot = self._free.get()
        try:
            if self._is_closed:
                return Result(work.trial.name, Status.FAILED, "interrupted")
            task = self._cluster.start(slot, work, runner)
            self._running.add(task)
            try:
                return self._cluster.outcome(task, work)
            finally:
                self._running.discard(task)
        finally:
            self._free.put(slot)

    def close(self) -> list[Any]:
        """Start no more; returns those that run."""
        self._is_closed = True
        return list(self._running)


@dataclass(frozen=True)
class _There:
    """A runner whose trials run on one of the machines."""

    inner: Runner
    machines: _RayMachines

    @property
    def device(self) -> str:
        return self.inner.device

    @property
    def simulated(self) -> bool:
        return self.inner.simulated

    @property
    def options(self) -> Sequence[str]:
        return self.inner.options

    @property
    def environment(self) -> Mapping[str, str]:
        return self.inner.environment

    def refusal(self, row: Row) -> str:
        return self.inner.refusal(row)

    def run(self, trial: Trial, folder: Path, tell: Tell) -> Result:
        return self.machines.run(Work(trial, folder), self.inner)


def _variables() -> dict[str, str | None]:
    """Of this process's environment, what a job's memory or memlens depends on.

    Ray gives its workers threads for the CPUs of a task, where a job that is run here has those of the
    shell.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith("MEMLENS_")}
    return {**ours, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def run_there(
    work: Work, runner: Runner, folder: str, variables: Mapping[str, str | None]
) -> Result | str:
    """A task: runs on one of the cluster's machines.

    Returns:
        What came of it, or why this machine cannot run it.
    """
    trial = work.trial
    here = Path(folder)
    wanted = [here, work.place, *(here / path for path in trial.job.files)]
    for path in wanted:
        if not path.exists():
            return (
                f"the Ray worker on {platform.node()} does not find {path}: the job's folder and the "
                "results' must be on a file system that all machines share, under the same path "
                "(start memlens there, and give --out there)"
            )
    os.chdir(here)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return runner.run(trial, work.place, lambda _: None)
