"""`--ray` and `--ray-cpus`: where the trials of a command run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from memlens.comparing.on_ray import OnRay
    from memlens.comparing.schedule import Machines, Schedule

__all__ = ["asked_machines", "asked_schedule", "ray_options"]

_F = TypeVar("_F", bound=Callable[..., Any])


def ray_options(what: str) -> Callable[[_F], _F]:
    """The two options, as a decorator.

    Args:
        what: is spread, for the help.
    """

    def add(function: _F) -> _F:
        cpus = click.option(
            "--ray-cpus",
            type=click.IntRange(min=1),
            help="With --ray: CPUs of each, so that several share a machine.  [default: all of one]",
        )
        address = click.option(
            "--ray",
            metavar="ADDRESS",
            help=f"Spread {what} over a Ray cluster, one machine each: auto, local, or ray://HOST:10001. "
            "The job's folder and --out must be on a file system that its machines share.",
        )
        return address(cpus(function))

    return add


def asked_schedule(ray: str | None, cpus: int | None) -> Schedule:
    """Where and when trials run that do not depend on each other.

    Raises:
        UsageError: the options do not go together.
        MissingDependencyError: Ray is not installed.
    """
    from memlens.comparing.schedule import InTurn

    return _cluster(ray, cpus) or InTurn()


def asked_machines(ray: str | None, cpus: int | None) -> AbstractContextManager[Machines]:
    """Where searches run.

    Raises:
        UsageError: the options do not go together, or there is no such cluster.
        MissingDependencyError: Ray is not installed.
    """
    from memlens.comparing.schedule import Here

    cluster = _cluster(ray, cpus)
    return nullcontext(Here()) if cluster is None else cluster.machines()


def _cluster(ray: str | None, cpus: int | None) -> OnRay | None:
    if ray is None:
        if cpus is not None:
            raise click.UsageError("--ray-cpus goes with --ray")
        return None
    from memlens.comparing.on_ray import OnRay

    return OnRay(ray, cpus)
