"""`memlens plan --fit`: on how many GPUs a job fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from memlens.catalogue.combinations import ShardingMode
    from memlens.catalogue.variant import Variant
    from memlens.comparing.compare import Progress
    from memlens.comparing.job import ComparedJob
    from memlens.comparing.schedule import Machines
    from memlens.planning.fit import Fewest
    from memlens.planning.floor import Floor
    from memlens.planning.search import Try
    from memlens.planning.simulated import Simulated

__all__ = ["fit", "floors_of"]


def fit(
    words: tuple[str, ...],
    literal: Sequence[str] | None,
    model: str | None,
    modes: Sequence[ShardingMode],
    variants: Sequence[Variant],
    runner: Simulated,
    out: Path | None,
    *,
    fresh: bool,
    as_json: bool,
    machines: Machines,
) -> None:
    """Search, and print a table.

    Args:
        words: of the job.
        literal: what stands behind `--`; None: nothing does.
        model: of the built-in job; None: there is a script.
        modes: kinds of sharding; none: all of them with a model, and else what the job does.
        variants: optimizers.
        runner: what simulates; it knows the card.
        out: folder for captures; None: the usual one.
        fresh: simulate all anew.
        as_json: print for programs.
        machines: where the searches run.

    Raises:
        UsageError: no card was named.
    """
    from memlens.cli.asked.job import planned_job
    from memlens.cli.asked.sharding import sharded_jobs
    from memlens.comparing.progress import make_progress
    from memlens.comparing.schedule import side_by_side
    from memlens.disk.runs import DEFAULT_FOLDER
    from memlens.errors import UsageError
    from memlens.planning.fit import Fewest
    from memlens.planning.ranks import refuse_launcher

    card = runner.gpu
    if card is None:
        raise click.UsageError("--fit needs a card; name one with --gpu or --capacity")
    refuse_launcher(literal or ())

    def make(told: tuple[str, ...]) -> ComparedJob:
        return planned_job(told, literal, model, runner.steps)

    job = make(words)
    folder = (out or Path(DEFAULT_FOLDER, f"fit-{job.name}")).absolute()
    floors = floors_of(model, words)
    kinds: Sequence[ShardingMode | None] = modes or ([None] if model is None else _every_mode())
    jobs: dict[ShardingMode | None, ComparedJob] = {}
    refused: dict[ShardingMode | None, str] = {}
    for mode in kinds:
        try:
            jobs[mode] = job if mode is None else sharded_jobs([mode], words, make, model, 0)[mode]
        except UsageError as error:  # the job's own words do not go with this one
            refused[mode] = str(error)
    with make_progress(None) as progress:

        def search(asked: tuple[ShardingMode | None, Variant]) -> Fewest:
            mode, variant = asked
            if mode in refused:
                return Fewest(variant.name, mode, refused=refused[mode])
            floor = floors(mode, variant)
            return _fewest(
                jobs[mode], mode, variant, runner, folder, floor, machines, progress, fresh=fresh
            )

        searches = [(mode, variant) for mode in kinds for variant in variants]
        found = side_by_side(machines, search, searches)
    if as_json:
        import json

        answer = {
            "gpu": card.name,
            "usable_bytes": card.usable_bytes,
            "answers": [each.to_json() for each in found],
        }
        click.echo(json.dumps(answer, indent=2))
        return
    from memlens.report.plan.fit import fit_lines

    for line in fit_lines(found, card, job.shown):
        click.echo(line)


def _every_mode() -> Sequence[ShardingMode]:
    from memlens.catalogue.combinations import ShardingMode

    return list(ShardingMode)


def _fewest(
    job: ComparedJob,
    mode: ShardingMode | None,
    variant: Variant,
    runner: Simulated,
    folder: Path,
    floor: Floor | None,
    machines: Machines,
    progress: Progress,
    *,
    fresh: bool,
) -> Fewest:
    from dataclasses import replace

    from memlens.catalogue.combinations import refusal
    from memlens.comparing.tries import Trial, try_one
    from memlens.launch.environment import SHARDING
    from memlens.planning.fit import Fewest, fewest_gpus
    from memlens.planning.ranks import Ranks
    from memlens.planning.search import Try
    from memlens.planning.simulated import verdict_on

    card = runner.card
    row = variant.row
    if row is not None and mode is not None:
        reason = refusal(row, mode, no_retain_grad=variant.no_retain_grad)
        if reason:
            return Fewest(variant.name, mode, refused=reason)
    if mode is not None:
        job = replace(job, environment={**job.environment, SHARDING: mode.value})
    where = "" if mode is None else f"@{mode.value}"

    def measure(gpus: int) -> Try:
        title = f"{variant.name}{where} on {gpus}"
        progress.begin(title)
        trial = Trial(title, job, None if row is None else variant, mode)
        rank = 0 if floor is None else floor.fullest_rank(gpus)
        one = machines.place(replace(runner, ranks=Ranks(gpus, rank)))
        result = try_one(trial, folder, one, fresh=fresh, tell=progress.tell)
        progress.end(result)
        return Try(gpus, str(gpus), result, verdict_on(result, card))

    return fewest_gpus(variant.name, mode, card, measure, floor)


def floors_of(
    model: str | None, words: tuple[str, ...]
) -> Callable[[ShardingMode | None, Variant], Floor | None]:
    """What a built-in job holds at least; nothing is known of a script before it runs."""
    if model is None:
        return lambda mode, variant: None
    from memlens.models.job import read_options
    from memlens.planning.floor import Floor, parameters_of

    options = read_options(("--model", model, *words))
    parameters = parameters_of(model)
    config: dict[str, Any] = {
        **options.ds_config,
        "bf16": {"enabled": options.dtype == "bf16"},
        "gradient_accumulation_steps": options.accumulate,
    }
    zero = dict(config.get("zero_optimization", {}))
    if options.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if options.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    config["zero_optimization"] = zero

    def floor(mode: ShardingMode | None, variant: Variant) -> Floor | None:
        if mode is None:
            return None
        return Floor(parameters, mode, variant, config, offload=bool(options.offload))

    return floor
