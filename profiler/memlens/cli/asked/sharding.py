"""What `--zero`, `--fsdp`, `--nproc`, `--world-size` and `--rank` mean for a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memlens.catalogue.combinations import ShardingMode
    from memlens.catalogue.variant import Variant
    from memlens.comparing.job import ComparedJob
    from memlens.planning.ranks import Ranks

__all__ = ["asked_mode", "asked_modes", "asked_processes", "asked_ranks", "sharded_jobs"]

DEFAULT_PROCESSES = 2
"""With sharding, where there are not several GPUs."""


def asked_modes(zero: str | None, fsdp: bool) -> list[ShardingMode]:
    """The kinds of sharding to compare, in the order in which tables show them.

    Raises:
        UsageError: one of them is no stage of ZeRO.
    """
    from memlens.catalogue.combinations import ShardingMode, read_stages

    return [*(read_stages(zero) if zero else ()), *([ShardingMode.FSDP] if fsdp else ())]


def asked_mode(zero: str | None, fsdp: bool, variant: Variant) -> ShardingMode | None:
    """The kind of sharding that was asked for; None: none was.

    Raises:
        UsageError: there are several, or the optimizer does not run so.
    """
    from memlens.catalogue.combinations import refusal

    modes = asked_modes(zero, fsdp)
    if not modes:
        return None
    if len(modes) > 1:
        names = ", ".join(each.label for each in modes)
        raise click.UsageError(f"{names}: one plan is of one of them; several go with --fit")
    row = variant.row
    reason = "" if row is None else refusal(row, modes[0], no_retain_grad=variant.no_retain_grad)
    if reason:
        raise click.UsageError(reason)
    return modes[0]


def asked_ranks(
    world_size: int | None, rank: int, literal: Sequence[str] | None, *, is_sharded: bool
) -> Ranks | None:
    """Which rank is to be simulated; None: nobody asked for ranks.

    Raises:
        UsageError: there is no such rank, or the job would start several.
    """
    from memlens.planning.ranks import Ranks, refuse_launcher

    if world_size is None:
        if rank:
            raise click.UsageError("--rank says which of --world-size; give both")
        return Ranks(1) if is_sharded else None
    refuse_launcher(literal or ())
    return Ranks(world_size, rank)


def asked_processes(nproc: int | None, *, is_command: bool, is_sharded: bool) -> int:
    """On how many processes of this machine the job is started; 0: it starts them itself, or is one.

    Raises:
        UsageError: a command is to be started several times.
    """
    if is_command:
        if nproc is not None:
            raise click.UsageError(
                "--nproc starts a script or a --model on several processes; a command behind -- starts "
                "its own (-- torchrun --nproc-per-node 2 train.py)"
            )
        return 0
    if nproc is not None or not is_sharded:
        return nproc or 0
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return gpus if gpus > 1 else DEFAULT_PROCESSES


def sharded_jobs(
    modes: Sequence[ShardingMode],
    words: tuple[str, ...],
    make: Callable[[tuple[str, ...]], ComparedJob],
    model: str | None,
    processes: int,
) -> dict[ShardingMode, ComparedJob]:
    """The job as it is started for each kind of sharding.

    A built-in one is told which; a script uses DeepSpeed or FSDP, and gets another stage while it runs.

    Args:
        modes: the kinds.
        words: of the job.
        make: makes a job of words.
        model: of the built-in job; None: there is a script.
        processes: on how many it is started; 0: it starts them itself.
    """
    plain = make(words)
    jobs = {}
    for mode in modes:
        told = ("--fsdp",) if mode.stage is None else ("--zero", str(mode.stage))
        job = plain if model is None else make((*words, *told))
        jobs[mode] = replace(job, name=plain.name, shown=plain.shown, processes=processes)
    return jobs
