"""`memlens plan`: what a job would need on a GPU, on a machine that has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memlens.catalogue.gpus import Gpu
    from memlens.planning.plan import Plan

__all__ = ["chosen_gpu", "command", "split_job"]


class _PlanCommand(click.Command):
    """Own options stand before the script; with --model, anywhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
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
    cls=_PlanCommand,
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
@click.pass_context
def command(
    ctx: click.Context,
    gpu: str | None,
    capacity: str | None,
    model: str | None,
    optimizer: str | None,
    no_retain_grad: bool,
    steps: int,
    settings: str | None,
    rollup: bool,
    as_json: bool,
    out: Path | None,
    stacks: bool,
) -> None:
    """Say what a job would need on a GPU. The script is unchanged; no GPU is needed.

    \b
    memlens plan --gpu "RTX 4090" train.py --batch-size 8
    memlens plan --model llama-7b --optimizer galore-adamw8bit --no-retain-grad --batch 1x256 --dtype bf16

    It runs on tensors without data, against a model of PyTorch's CUDA allocator. What it prints of a loss
    or any other value is made up.
    """  # noqa: D301  \b is for click
    from memlens.cli.compare import compared_job
    from memlens.planning.plan import make_plan
    from memlens.planning.progress import planning
    from memlens.planning.simulate import DEFAULT_GPU, simulate
    from memlens.catalogue.gpus import GPUS

    words, literal = ctx.meta["memlens.job"]
    card = chosen_gpu(gpu, capacity)
    name, stand_in = _variant(optimizer, no_retain_grad)
    job = compared_job(_with_device(words, model, steps), literal, model)
    folder = _folder(out, job.name)
    with planning(job.shown) as tell:
        result = simulate(
            job,
            card or GPUS[DEFAULT_GPU],
            folder,
            name=name,
            stand_in=stand_in,
            steps=steps,
            allocator=settings,
            options=() if stacks else ("--no-stacks",),
            tell=tell,
        )
    _print(make_plan(result, card), rollup=rollup, as_json=as_json)


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


def _variant(optimizer: str | None, no_retain_grad: bool) -> tuple[str, str | None]:
    from memlens.catalogue.variant import parse_variant

    if optimizer is None:
        if no_retain_grad:
            raise click.UsageError("--no-retain-grad goes with --optimizer: name one")
        return "as-is", None
    variant = parse_variant(optimizer, no_retain_grad=no_retain_grad)
    return variant.name, None if variant.row is None else variant.name


def _with_device(words: tuple[str, ...], model: str | None, steps: int) -> tuple[str, ...]:
    """The built-in job is told to train on CUDA; a script says so itself."""
    if model is None:
        return words
    more = (
        () if any(word.partition("=")[0] == "--device" for word in words) else ("--device", "cuda")
    )
    return (*words, *more, "--steps", str(steps))


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
