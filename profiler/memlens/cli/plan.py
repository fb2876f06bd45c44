"""`memlens plan`: what a job would need on a GPU, on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memlens.cli.asked.job import (
    JobCommand,
    asked_variant,
    chosen_gpu,
    planned_job,
    simulated_runner,
)
from memlens.cli.asked.ray import asked_machines, ray_options

if TYPE_CHECKING:
    from memlens.planning.by_layout import LayoutPlan
    from memlens.planning.plan import Plan

__all__ = ["command"]


@click.command(
    cls=JobCommand,
    name="plan",
    options_metavar="[OPTIONS] SCRIPT | -m MODULE | --model NAME | -- COMMAND  [ARGUMENTS]...",
)
@click.option("--gpu", help='The card, or its size: "RTX 4090", "A100 80GB", 24GB.')
@click.option(
    "--capacity", help="Memory for PyTorch, with nothing taken off for driver and context."
)
@click.option(
    "--model",
    help="A built-in job instead of a script: train a model of this shape. Further words are its own: "
    "--batch 1x256 --dtype bf16 --checkpointing.",
)
@click.option(
    "--optimizer",
    metavar="NAME[:OPTION=VALUE,…]",
    help="Takes the place of the job's; `memlens optimizers` lists the names.  [default: the job's own]",
)
@click.option(
    "--no-retain-grad",
    is_flag=True,
    help="Update layer by layer within backward.",
)
@click.option(
    "--world-size",
    type=click.IntRange(min=1),
    help="Simulate one rank of so many.  [default: the only one]",
)
@click.option(
    "--rank", type=click.IntRange(min=0), default=0, show_default=True,
    help="Which one, with --world-size.",
)  # fmt: skip
@click.option(
    "--zero",
    metavar="STAGE",
    help="Under DeepSpeed with this stage of ZeRO, 0 to 3: a script that uses DeepSpeed, or --model. "
    "With --fit, several: 1,2,3.",
)
@click.option(
    "--fsdp",
    is_flag=True,
    help="Under FSDP: a script that uses it, or --model, whose blocks are wrapped with fully_shard.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=3, show_default=True,
    help="Training steps to simulate; then the job is ended.",
)  # fmt: skip
@click.option(
    "--settings",
    metavar="TEXT",
    help="Of the allocator, written as in PYTORCH_CUDA_ALLOC_CONF.  [default: that variable]",
)
@click.option("--rollup", is_flag=True, help="Show the five names of the published charts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the capture; must not exist.  [default: memlens-runs/plan-<time>-<name>]",
)
@click.option(
    "--stacks/--no-stacks", default=True, help="Keep the Python stack of each allocation."
)
@click.option(
    "--max-batch",
    "what",
    flag_value="batch",
    help="Find the largest batch that fits on the card. In a script's words, {} stands for it.",
)
@click.option(
    "--max-tokens", "what", flag_value="tokens", help="The same for the length of a sequence."
)
@click.option(
    "--max-model",
    "what",
    flag_value="model",
    help="Find the largest built-in model of the family of --model that fits on the card.",
)
@click.option(
    "--fit",
    "what",
    flag_value="fit",
    help="Find the fewest GPUs on which the job fits, for each --optimizer (several, with commas) under "
    "each --zero stage and --fsdp.  [default: all of them, with --model]",
)
@click.option(
    "--multiple-of",
    type=click.IntRange(min=1),
    help="Of batches or tokens, try multiples of this only.  [default: 1, for tokens 64]",
)
@click.option(
    "--fresh", is_flag=True, help="Simulate all sizes anew, also what an earlier search has."
)
@ray_options("the searches of --fit")
@click.pass_context
def command(
    ctx: click.Context,
    gpu: str | None,
    capacity: str | None,
    model: str | None,
    optimizer: str | None,
    no_retain_grad: bool,
    world_size: int | None,
    rank: int,
    zero: str | None,
    fsdp: bool,
    steps: int,
    settings: str | None,
    rollup: bool,
    as_json: bool,
    out: Path | None,
    stacks: bool,
    what: str | None,
    multiple_of: int | None,
    fresh: bool,
    ray: str | None,
    ray_cpus: int | None,
) -> None:
    """Say what a job would need on a GPU. The script is unchanged; no GPU is needed.

    \b
    memlens plan --gpu "RTX 4090" train.py --batch-size 8
    memlens plan --model llama-7b --optimizer galore-adamw8bit --no-retain-grad --batch 1x256 --dtype bf16
    memlens plan --max-batch --gpu "RTX 4090" train.py --batch-size {}
    memlens plan --fit --gpu "A100 80GB" --model llama-7b --batch 1x2048 --dtype bf16 --checkpointing

    It runs on tensors without data, against a model of PyTorch's CUDA allocator. What it prints of a loss
    or any other value is made up.
    """  # noqa: D301  \b is for click
    from dataclasses import replace

    from memlens.catalogue.combinations import cautions
    from memlens.catalogue.gpus import GPUS
    from memlens.catalogue.variant import AS_IS
    from memlens.cli.asked.sharding import asked_mode, asked_modes, asked_ranks
    from memlens.cli.compare import split_names
    from memlens.cli.largest import find_largest, ladder_of, print_found
    from memlens.errors import SimulationError
    from memlens.planning.plan import make_plan
    from memlens.planning.progress import planning
    from memlens.planning.simulate import DEFAULT_GPU, simulate
    from memlens.planning.sizes import JobWords

    words, literal = ctx.meta["memlens.job"]
    card = chosen_gpu(gpu, capacity)
    recording = () if stacks else ("--no-stacks",)
    if what == "fit":
        from memlens.cli.fit import fit

        for option, value in (("--world-size", world_size), ("--multiple-of", multiple_of)):
            if value is not None:
                raise click.UsageError(f"--fit finds the number of GPUs; leave {option} out")
        with asked_machines(ray, ray_cpus) as machines:
            fit(
                words,
                literal,
                model,
                asked_modes(zero, fsdp),
                [asked_variant(name, no_retain_grad) for name in split_names([optimizer or AS_IS])],
                simulated_runner(card, steps, settings, ("--no-stacks",)),
                out,
                fresh=fresh,
                as_json=as_json,
                machines=machines,
            )
        return
    if ray is not None or ray_cpus is not None:
        raise click.UsageError("--ray goes with --fit; one plan, or one search, runs here")
    variant = asked_variant(optimizer, no_retain_grad)
    mode = asked_mode(zero, fsdp, variant)
    ranks = asked_ranks(world_size, rank, literal, is_sharded=mode is not None)
    if model is not None and ranks is not None and mode is None:
        raise click.UsageError("with --model, --world-size needs to know how: --zero or --fsdp")
    runner = simulated_runner(card, steps, settings, recording, ranks)
    if what is not None:
        behind = None if literal is None else tuple(literal)
        ladder = ladder_of(what, JobWords(words, behind, model), multiple_of)
        print_found(find_largest(ladder, runner, variant, mode, out, fresh=fresh), as_json=as_json)
        return
    if multiple_of is not None:
        raise click.UsageError("--multiple-of goes with --max-batch or --max-tokens")
    job = planned_job(words, literal, model, steps, mode)
    folder = _folder(out, job.name)
    try:
        with planning(job.shown) as tell:
            result = simulate(
                job,
                card or GPUS[DEFAULT_GPU],
                folder,
                name=variant.name,
                stand_in=None if variant.row is None else variant.name,
                steps=steps,
                allocator=settings,
                ranks=ranks,
                options=recording,
                tell=tell,
            )
        if mode is not None and variant.row is not None:
            result = replace(result, notes=(*cautions(variant.row, mode), *result.notes))
        made = make_plan(result, card, ranks, mode)
    except SimulationError as error:
        if model is None or mode is None or ranks is None:
            raise
        from memlens.cli.fit import floors_of
        from memlens.planning.by_layout import LayoutPlan

        floor = floors_of(model, words)(mode, variant)
        assert floor is not None
        held = floor.categories_at(ranks.world_size, ranks.rank)
        _print_layout(LayoutPlan(str(error), ranks, mode, held, card), as_json=as_json)
        return
    _print(made, rollup=rollup, as_json=as_json)


def _folder(out: Path | None, name: str) -> Path:
    import time

    from memlens.disk.runs import DEFAULT_FOLDER
    from memlens.errors import OutputExistsError

    folder = (
        out or Path(DEFAULT_FOLDER, f"plan-{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    ).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise OutputExistsError(f"{folder} is already there; name another with --out") from None
    return folder


def _print(plan: Plan, *, rollup: bool, as_json: bool) -> None:
    from memlens.report.view import ReportOptions

    options = ReportOptions(rollup=rollup)
    if as_json:
        import json

        from memlens.report.payload import payload

        click.echo(json.dumps({**payload(plan.capture, options), "plan": plan.to_json()}, indent=2))
        return
    from memlens.report.plan.text import plan_lines
    from memlens.report.terminal import make_console, print_report

    for line in plan_lines(plan):
        click.echo(line)
    click.echo()
    print_report(plan.capture, options, make_console())


def _print_layout(plan: LayoutPlan, *, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps({"plan": plan.to_json()}, indent=2))
        return
    from memlens.report.plan.by_layout import layout_lines

    for line in layout_lines(plan):
        click.echo(line)
