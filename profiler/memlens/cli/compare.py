"""`memlens compare`: one job under several optimizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memlens.cli.asked.ray import asked_schedule, ray_options

if TYPE_CHECKING:
    from memlens.catalogue.gpus import Gpu
    from memlens.catalogue.variant import Variant
    from memlens.comparing.job import ComparedJob
    from memlens.comparing.results import Comparison
    from memlens.comparing.tries import Runner, Trial

__all__ = ["command", "compared_job", "split_names"]

DEFAULT = ("adamw", "adamw-fused", "adamw-r", "adamw8bit", "adafactor", "lion")
"""What is tried when nobody says what."""

_MODEL_JOB = "memlens.models.job"
_PLAN_ONLY = {"--plan", "--gpu", "--steps", "--settings"}
"""Options of a simulated comparison. Jobs have such options themselves."""
_READ = frozenset({".py", ".json", ".yaml", ".yml", ".toml"})
"""Files of a job whose change may change what it needs."""
_THEIRS = "\0"
"""Stands before an option that looks like ours, on its way to the job."""


class _CompareCommand(click.Command):
    """Takes its own options wherever they stand, and leaves all other words to the job.

    Those of a simulated comparison are ours before the script only, or where there is none: `--steps`
    and `--gpu` are what many scripts call their own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        literal: list[str] | None = None
        if "--" in args:
            position = args.index("--")
            args, literal = args[:position], args[position + 1 :]
        ctx.meta["memlens.literal"] = literal
        return super().parse_args(ctx, self._leave_to_the_job(args))

    def _leave_to_the_job(self, args: list[str]) -> list[str]:
        values = {
            option: not parameter.is_flag
            for parameter in self.params
            if isinstance(parameter, click.Option)
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        names = [word.partition("=")[0] for word in args]
        if "--model" in names:
            # A built-in job has steps of its own, but neither cards nor settings.
            first, theirs = 0, set() if "--plan" in names else {"--steps"}
        else:
            first, theirs = _first_of_the_job(args, names, values), _PLAN_ONLY
        return [
            _THEIRS + word if at >= first and name in theirs else word
            for at, (word, name) in enumerate(zip(args, names, strict=True))
        ]


def _first_of_the_job(args: list[str], names: list[str], values: dict[str, bool]) -> int:
    """Position of the first word that is neither an option of ours nor its value."""
    at = 0
    while at < len(args) and names[at] in values:
        at += 2 if values[names[at]] and "=" not in args[at] else 1
    return at


@click.command(
    cls=_CompareCommand,
    name="compare",
    context_settings={"ignore_unknown_options": True},
    options_metavar="[OPTIONS] SCRIPT | -m MODULE | --model NAME | -- COMMAND  [ARGUMENTS]...",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="")
@click.option(
    "--optimizer",
    "optimizers",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="What to try; several times, or with commas. `memlens optimizers` lists the names; as-is is "
    f"the job's own.  [default: {','.join(DEFAULT)}]",
)
@click.option(
    "--baseline",
    help="What the others are measured against; NAME@zero2 or NAME@fsdp names one of a matrix.  "
    "[default: the first]",
)
@click.option(
    "--no-retain-grad",
    is_flag=True,
    help="Update layer by layer within backward, with every optimizer that can. For one alone: "
    "NAME+no-retain-grad.",
)
@click.option(
    "--zero",
    metavar="STAGE,…",
    help="Run each optimizer under DeepSpeed with each of these stages of ZeRO, 0 to 3 (0: without): a "
    "script that uses DeepSpeed, whose stage is replaced, or --model.",
)
@click.option(
    "--fsdp",
    is_flag=True,
    help="Run each under FSDP: a script that uses it, or --model, whose blocks are wrapped with "
    "fully_shard.",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    help="Start the script or --model on so many processes, as torchrun does.  [default: with --zero "
    "or --fsdp the number of GPUs, at least 2, else 1]",
)
@click.option(
    "--model",
    help="A built-in job instead of a script: train a model of this shape on random data. Further "
    "words are its own: --batch 1x256 --dtype bf16 --steps 5 --lr 1e-3 --seed 0 --checkpointing, and "
    "with --zero --ds-config FILE for what else DeepSpeed is to be told.",
)
@click.option(
    "--capacity",
    "capacities",
    multiple=True,
    metavar='SIZE[:"LABEL"]',
    help='A line in the chart: 24GB:"RTX 4090".',
)
@click.option("--rollup", is_flag=True, help="Show the five names of the published charts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for captures, table and charts; results in it are used again.  "
    "[default: memlens-runs/compare-<name>]",
)
@click.option("--fresh", is_flag=True, help="Run all anew, also what an earlier call has found.")
@ray_options("the variants")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write hyperparameters, losses and the chart for TensorBoard, too.",
)
@click.option(
    "--stacks/--no-stacks", default=True, help="Record the Python stack of each allocation."
)
@click.option(
    "--plan",
    is_flag=True,
    help="Simulate a GPU, as `memlens plan` does; no GPU is needed. This and the options below stand "
    "before the script.",
)
@click.option("--gpu", help='With --plan: the card, or its size: "RTX 4090", "A100 80GB", 24GB.')
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="With --plan: training steps to simulate; then the job is ended.  [default: 3]",
)
@click.option(
    "--settings",
    metavar="TEXT",
    help="With --plan: of the allocator, written as in PYTORCH_CUDA_ALLOC_CONF.",
)
@click.pass_context
def command(
    ctx: click.Context,
    words: tuple[str, ...],
    optimizers: tuple[str, ...],
    baseline: str | None,
    no_retain_grad: bool,
    zero: str | None,
    fsdp: bool,
    nproc: int | None,
    model: str | None,
    capacities: tuple[str, ...],
    rollup: bool,
    as_json: bool,
    out: Path | None,
    fresh: bool,
    ray: str | None,
    ray_cpus: int | None,
    tensorboard: Path | None,
    stacks: bool,
    plan: bool,
    gpu: str | None,
    steps: int | None,
    settings: str | None,
) -> int:
    """Run a job once per optimizer, each in a process of its own, side by side.

    \b
    memlens compare train.py --lr 1e-3 --optimizer adamw,adamw8bit,adamw-r
    memlens compare --model llama-60m --batch 1x256 --optimizer adamw --optimizer lion
    memlens compare --optimizer adamw,adafactor -- torchrun --nproc-per-node 2 train.py
    memlens compare train.py --zero 0,1,2,3 --optimizer adamw,adamw8bit,adamw-r --nproc 2
    memlens compare --plan --gpu "RTX 4090" train.py --optimizer adamw,adamw8bit

    The script is unchanged: whatever optimizer it constructs is replaced. Options of ours may stand
    before or after its name; words behind `--` are the job's alone.
    """  # noqa: D301  \b is for click
    from memlens.cli.asked.sharding import asked_modes, asked_processes, asked_ranks, sharded_jobs
    from memlens.comparing.capacity import parse_capacity
    from memlens.comparing.compare import compare_trials, sharded_trials, trials_of
    from memlens.comparing.progress import make_progress
    from memlens.comparing.tries import Measured
    from memlens.comparing.write import write_all
    from memlens.disk.runs import DEFAULT_FOLDER

    for option, value in (("--gpu", gpu), ("--steps", steps), ("--settings", settings)):
        if value is not None and not plan:
            raise click.UsageError(f"{option} goes with --plan")
    limits = tuple(parse_capacity(text) for text in capacities)
    variants = _variants(optimizers or DEFAULT, baseline, no_retain_grad)
    modes = asked_modes(zero, fsdp)
    words = tuple(word.removeprefix(_THEIRS) for word in words)
    literal = ctx.meta["memlens.literal"]
    recording = () if stacks else ("--no-stacks",)
    # Behind a script, words after `--` are arguments of its own.
    is_command = literal is not None and not words
    processes = asked_processes(nproc, is_command=is_command, is_sharded=bool(modes))
    runner: Runner
    if plan:
        from memlens.cli.asked.job import chosen_gpu, planned_job, simulated_runner
        from memlens.planning.simulate import STEPS

        # One rank stands for all of them.
        ranks = asked_ranks(processes or None, 0, literal, is_sharded=bool(modes))
        runner = simulated_runner(chosen_gpu(gpu, None), steps or STEPS, settings, recording, ranks)
        processes = 0

        def make(words: tuple[str, ...]) -> ComparedJob:
            return planned_job(words, literal, model, steps or STEPS)

    else:
        runner = Measured(recording)

        def make(words: tuple[str, ...]) -> ComparedJob:
            return compared_job(words, literal, model)

    job = replace(make(words), processes=processes)
    if modes:
        trials = sharded_trials(sharded_jobs(modes, words, make, model, processes), variants)
    else:
        trials = trials_of(job, variants)
    kind = "compare-plan" if plan else "compare"
    folder = (out or Path(DEFAULT_FOLDER, f"{kind}-{job.name}")).absolute()
    with make_progress(len(trials)) as progress:
        comparison = compare_trials(
            trials,
            baseline=_baseline(baseline, trials),
            shown=job.shown,
            folder=folder,
            runner=runner,
            fresh=fresh,
            progress=progress,
            schedule=asked_schedule(ray, ray_cpus),
        )
    if plan and gpu is not None:
        comparison = _judged(comparison, chosen_gpu(gpu, None))
    written = write_all(comparison, folder, rollup=rollup, capacities=limits)
    if tensorboard is not None:
        from memlens.comparing.outputs.tensorboard import write_tensorboard

        written.append(f"wrote {write_tensorboard(comparison, tensorboard, capacities=limits)}")
    if as_json:
        import json

        click.echo(json.dumps(comparison.to_json(), indent=2))
    else:
        from memlens.comparing.outputs.table import print_comparison
        from memlens.report.terminal import make_console

        print_comparison(comparison, make_console(), rollup=rollup, capacities=limits)
        for line in written:
            click.echo(line)
    if any(result.peak for result in comparison.results):
        return 0
    from memlens.comparing.results import Status
    from memlens.errors import UsageError

    refused = all(result.status is Status.REFUSED for result in comparison.results)
    return UsageError.exit_code if refused else 1


def _baseline(asked: str | None, trials: list[Trial]) -> str:
    """Name of the trial that the others are measured against: a name, or the first of an optimizer."""
    if asked is None:
        return trials[0].name
    for trial in trials:
        if asked in (trial.name, trial.variant.name if trial.variant else ""):
            return trial.name
    raise click.UsageError(
        f"the baseline {asked} is none of {', '.join(trial.name for trial in trials)}"
    )


def _judged(comparison: Comparison, gpu: Gpu | None) -> Comparison:
    """With a card's verdict on every variant that ran."""
    from memlens.planning.simulated import verdict_on

    if gpu is None:
        return comparison
    verdicts = {each.name: verdict_on(each, gpu) for each in comparison.results}
    known = {name: verdict for name, verdict in verdicts.items() if verdict is not None}
    return replace(comparison, verdicts=known)


def split_names(texts: tuple[str, ...] | list[str]) -> list[str]:
    """Split `a,b:x=1,y=2,c` into `a`, `b:x=1,y=2` and `c`."""
    names: list[str] = []
    for text in texts:
        for item in filter(None, (part.strip() for part in text.split(","))):
            is_option = names and ":" in names[-1] and ":" not in item and "=" in item
            if is_option:
                names[-1] += f",{item}"
            else:
                names.append(item)
    return names


def _variants(texts: Any, baseline: str | None, no_retain_grad: bool) -> list[Variant]:
    from memlens.catalogue.variant import parse_variant

    names = split_names(texts)
    variants = [parse_variant(name, no_retain_grad=no_retain_grad) for name in names]
    base = None if baseline is None else baseline.partition("@")[0]
    if base is not None and base not in [each.name for each in variants]:
        variants.insert(0, parse_variant(base))
    return variants


def compared_job(
    words: tuple[str, ...], literal: list[str] | None, model: str | None
) -> ComparedJob:
    """From the words of a command line to the job.

    Args:
        words: what is not an option of ours.
        literal: what stood behind `--`; None: nothing.
        model: of the built-in job; None: there is a script.

    Raises:
        UsageError: there is no such job.
    """
    from memlens.comparing.job import ComparedJob
    from memlens.launch.command import parse_job

    if model is not None:
        if literal:
            raise click.UsageError("--model is a job of its own; there is no command to run")
        from memlens.models.job import check

        check(("--model", model, *words))
        own = ("-m", _MODEL_JOB, "--model", model, *words)
        shown = " ".join(("--model", model, *words))
        return ComparedJob(own, _plain_name("-".join((model, *words))), shown, _files(words))
    if literal is not None and not words:
        parse_job(literal, module=None, literal=True)
        shown = " ".join(literal)
        return ComparedJob(("--", *literal), _plain_name(_script(literal)), shown, _files(literal))
    everything = [*words, *(literal or [])]
    if everything[:1] == ["-m"]:
        if len(everything) < 2:
            raise click.UsageError("-m needs the name of a module")
        name = everything[1].rpartition(".")[2]
        shown = " ".join(everything)
        return ComparedJob(tuple(everything), _plain_name(name), shown, _files(everything[2:]))
    if everything and everything[0].startswith("-"):
        raise click.UsageError(
            f"no such option: {everything[0]} (options of the job stand behind its script)"
        )
    parse_job(everything, module=None, literal=False)
    script = Path(everything[0])
    files = ((script,) if script.is_file() else ()) + _files(everything[1:])
    return ComparedJob(tuple(everything), _plain_name(script.stem), " ".join(everything), files)


def _files(words: Sequence[str]) -> tuple[Path, ...]:
    """Scripts and settings among the words of a job: results are used again while these are the same."""
    given = (Path(word.rpartition("=")[2]) for word in words)
    return tuple(path for path in given if path.suffix in _READ and path.is_file())


def _script(words: list[str]) -> str:
    return next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).name)


def _plain_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")[:60] or "job"
