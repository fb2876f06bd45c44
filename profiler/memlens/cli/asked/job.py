"""What the commands that simulate a job have in common: its words, the card, the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlens.catalogue.combinations import ShardingMode
    from memlens.catalogue.gpus import Gpu
    from memlens.catalogue.variant import Variant
    from memlens.comparing.job import ComparedJob
    from memlens.planning.ranks import Ranks
    from memlens.planning.simulated import Simulated

__all__ = [
    "JobCommand",
    "asked_variant",
    "chosen_gpu",
    "planned_job",
    "simulated_runner",
    "split_job",
]


class JobCommand(click.Command):
    """Own options stand before the script; with --model, anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the job's words in `ctx.meta`."""
        own, job, literal = split_job(self, args)
        ctx.meta["memlens.job"] = (tuple(job), literal)
        return super().parse_args(ctx, own)


def split_job(
    command: click.Command, args: list[str]
) -> tuple[list[str], list[str], list[str] | None]:
    """Split a command line into options of ours, words of the job, and words behind `--`.

    Before a script, everything that begins with a dash is ours. With `--model` there is no script, and
    what we do not know is the built-in job's.
    """
    literal: list[str] | None = None
    if "--" in args:
        place = args.index("--")
        args, literal = args[:place], args[place + 1 :]
    values = {
        option: not parameter.is_flag
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    values["--help"] = values["-h"] = False
    has_model = any(word.partition("=")[0] == "--model" for word in args)
    own: list[str] = []
    job: list[str] = []
    place = 0
    while place < len(args):
        word = args[place]
        name = word.partition("=")[0]
        if name in values:
            own.append(word)
            if values[name] and "=" not in word and place + 1 < len(args):
                place += 1
                own.append(args[place])
        elif has_model:
            job.append(word)
        elif word.startswith("-") and word != "-m":
            own.append(word)  # click says that there is no such option
        else:
            job = args[place:]
            break
        place += 1
    return own, job, literal


def simulated_runner(
    card: Gpu | None,
    steps: int,
    settings: str | None,
    recording: Sequence[str],
    ranks: Ranks | None = None,
) -> Simulated:
    """What simulates, for options of a command line.

    Raises:
        UsageError: the allocator has no such settings.
    """
    from memlens.allocator.settings import AllocatorSettings
    from memlens.planning.simulated import Simulated

    if settings is not None:
        AllocatorSettings.from_text(settings)
    return Simulated(card, steps, settings, recording, ranks)


def planned_job(
    words: tuple[str, ...],
    literal: Sequence[str] | None,
    model: str | None,
    steps: int,
    mode: ShardingMode | None = None,
) -> ComparedJob:
    """From the words of a command line to a job that is simulated.

    A built-in one is told to train on CUDA; a script says so itself. The same goes for sharding, but
    that a script's stage of ZeRO is replaced.

    Raises:
        UsageError: there is no such job.
    """
    from dataclasses import replace
    from functools import partial

    from memlens.cli.asked.sharding import sharded_jobs
    from memlens.cli.compare import compared_job
    from memlens.launch.environment import SHARDING

    if mode is not None:
        make = partial(planned_job, literal=literal, model=model, steps=steps)
        job = sharded_jobs([mode], words, make, model, 0)[mode]
        return replace(job, environment={**job.environment, SHARDING: mode.value})
    behind = None if literal is None else list(literal)
    job = compared_job(words, behind, model)
    if model is None:
        return job
    names = {word.partition("=")[0] for word in words}
    device = () if "--device" in names else ("--device", "cuda")
    told = compared_job((*words, *device, "--steps", str(steps)), behind, model)
    return replace(told, name=job.name, shown=job.shown)


def chosen_gpu(gpu: str | None, capacity: str | None) -> Gpu | None:
    """The card that was asked for; None: none was.

    Raises:
        UsageError: there is no such card, or both were given.
    """
    from dataclasses import replace

    from memlens.catalogue.gpus import CONTEXT_BYTES, GPUS, Gpu, find_gpu
    from memlens.planning.simulate import DEFAULT_GPU
    from memlens.units import parse_bytes

    if capacity is None:
        return None if gpu is None else find_gpu(gpu)
    known = find_gpu(gpu) if gpu is not None else Gpu(capacity, 0)
    base = known if gpu is not None else replace(GPUS[DEFAULT_GPU], name=capacity)
    name = f"{known.name} with {capacity}" if gpu is not None else capacity
    return replace(base, name=name, total_bytes=parse_bytes(capacity) + CONTEXT_BYTES)


def asked_variant(optimizer: str | None, no_retain_grad: bool) -> Variant:
    """What takes the place of the job's optimizer.

    Raises:
        UsageError: there is no such optimizer, or it cannot do what is asked.
    """
    from memlens.catalogue.variant import Variant, parse_variant

    if optimizer is not None:
        return parse_variant(optimizer, no_retain_grad=no_retain_grad)
    if no_retain_grad:
        raise click.UsageError("--no-retain-grad goes with --optimizer: name one")
    return Variant(None)
