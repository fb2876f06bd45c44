"""`memlens advise`: what to change so that a job fits on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memlens.cli.asked.job import JobCommand

if TYPE_CHECKING:
    from memlens.comparing.results import Result
    from memlens.planning.advise import Advice
    from memlens.planning.simulated import Simulated
    from memlens.planning.sizes import JobWords

__all__ = ["command"]


@click.command(
    cls=JobCommand,
    name="advise",
    options_metavar="[OPTIONS] SCRIPT | -m MODULE | --model NAME | -- COMMAND  [ARGUMENTS]...",
)
@click.option("--gpu", help='The card, or its size: "RTX 4090", "A100 80GB", 24GB.')
@click.option(
    "--capacity", help="Memory for PyTorch, with nothing taken off for driver and context."
)
@click.option(
    "--model",
    help="A built-in job instead of a script: train a model of this shape. Further words are its own: "
    "--batch 1x256 --dtype bf16.",
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
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Try every change, also those that are not needed or cannot be enough.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for captures; results in it are used again.  [default: memlens-runs/advise-<name>]",
)
@click.option(
    "--fresh", is_flag=True, help="Simulate all anew, also what an earlier call has found."
)
@click.pass_context
def command(
    ctx: click.Context,
    gpu: str | None,
    capacity: str | None,
    model: str | None,
    steps: int,
    settings: str | None,
    everything: bool,
    as_json: bool,
    out: Path | None,
    fresh: bool,
) -> None:
    """Try changes to a job in simulation, the cheapest first, until it fits on a GPU.

    \b
    memlens advise --gpu "RTX 4090" train.py --batch-size 8
    memlens advise --gpu 24GB --model llama-7b --batch 1x256 --dtype bf16

    The script is unchanged and no GPU is needed. Each change is told with what it saves in simulation,
    and with what it costs in time or in quality, and who says so.
    """  # noqa: D301  \b is for click
    from memlens.cli.asked.job import chosen_gpu, simulated_runner
    from memlens.planning.sizes import JobWords

    words, literal = ctx.meta["memlens.job"]
    card = chosen_gpu(gpu, capacity)
    if card is None:
        raise click.UsageError("advice is for a card; name one with --gpu or --capacity")
    behind = None if literal is None else tuple(literal)
    job = JobWords(words, behind, model)
    runner = simulated_runner(card, steps, settings, ("--no-stacks",))
    advice = _advise(job, runner, out, everything=everything, fresh=fresh)
    if as_json:
        import json

        click.echo(json.dumps(advice.to_json(), indent=2))
        return
    from memlens.report.plan.advice import print_advice
    from memlens.report.terminal import make_console

    print_advice(advice, make_console())


def _advise(
    job: JobWords, runner: Simulated, out: Path | None, *, everything: bool, fresh: bool
) -> Advice:
    from memlens.catalogue.variant import parse_variant
    from memlens.cli.asked.job import planned_job
    from memlens.comparing.progress import make_progress
    from memlens.comparing.tries import Trial, try_one
    from memlens.disk.runs import DEFAULT_FOLDER
    from memlens.planning.advise import advise

    plain = planned_job(job.words, job.literal, job.model, runner.steps)
    folder = (out or Path(DEFAULT_FOLDER, f"advise-{plain.name}")).absolute()
    with make_progress(None) as progress:

        def simulate(name: str, changed: JobWords, variant: str) -> Result:
            progress.begin(name)
            told = planned_job(changed.words, changed.literal, changed.model, runner.steps)
            trial = Trial(name, told, parse_variant(variant) if variant else None)
            result = try_one(trial, folder, runner, fresh=fresh, tell=progress.tell)
            progress.end(result)
            return result

        return advise(job, plain.shown, runner.card, simulate, everything=everything)
