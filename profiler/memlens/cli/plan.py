"""`memlens plan`: what a job would need on a GPU, on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memlens.cli.ray_options import asked_machines, ray_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memlens.catalogue.combinations import ShardingMode
    from memlens.catalogue.gpus import Gpu
    from memlens.catalogue.variant import Variant
    from memlens.comparing.job import ComparedJob
    from memlens.planning.by_layout import LayoutPlan
    from memlens.planning.plan import Plan
    from memlens.planning.ranks import Ranks
    from memlens.planning.search import Found
    from memlens.planning.simulated import Simulated
    from memlens.planning.sizes import JobWords, Ladder

__all__ = [
    "JobCommand",
    "asked_variant",
    "chosen_gpu",
    "command",
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
    from memlens.cli.compare import split_names
    from memlens.cli.sharding import asked_mode, asked_modes, asked_ranks
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
        ladder = _ladder(what, JobWords(words, behind, model), multiple_of)
        _print_found(_search(ladder, runner, variant, mode, out, fresh=fresh), as_json=as_json)
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

    from memlens.cli.compare import compared_job
    from memlens.cli.sharding import sharded_jobs
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


def _ladder(what: str, job: JobWords, multiple: int | None) -> Ladder:
    from memlens.planning.sizes import TOKENS_MULTIPLE, model_ladder, number_ladder

    if what == "model":
        if multiple is not None:
            raise click.UsageError("--multiple-of goes with --max-batch or --max-tokens")
        return model_ladder(job)
    return number_ladder(what, job, multiple or (TOKENS_MULTIPLE if what == "tokens" else 1))


def _search(
    ladder: Ladder,
    runner: Simulated,
    variant: Variant,
    mode: ShardingMode | None,
    out: Path | None,
    *,
    fresh: bool,
) -> Found:
    from memlens.comparing.progress import make_progress
    from memlens.comparing.tries import Trial, try_one
    from memlens.disk.runs import DEFAULT_FOLDER
    from memlens.planning.search import Try, search
    from memlens.planning.simulated import verdict_on

    card = runner.gpu
    if card is None:
        raise click.UsageError(
            f"--max-{ladder.what} needs a card; name one with --gpu or --capacity"
        )

    def job_at(rung: int) -> ComparedJob:
        asked = ladder.job_at(rung)
        return planned_job(asked.words, asked.literal, asked.model, runner.steps, mode)

    name = job_at(1).name
    folder = (out or Path(DEFAULT_FOLDER, f"max-{ladder.what}-{name}")).absolute()
    with make_progress(None) as progress:

        def measure(rung: int) -> Try:
            title = f"{ladder.what} {ladder.label_of(rung)}"
            progress.begin(title)
            trial = Trial(title, job_at(rung), None if variant.row is None else variant, mode)
            result = try_one(trial, folder, runner, fresh=fresh, tell=progress.tell)
            progress.end(result)
            return Try(rung, ladder.label_of(rung), result, verdict_on(result, card))

        return search(ladder, card, measure)


def _print_found(found: Found, *, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(found.to_json(), indent=2))
        return
    from memlens.report.plan.search import found_lines

    for line in found_lines(found):
        click.echo(line)


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
