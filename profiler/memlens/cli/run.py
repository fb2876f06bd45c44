"""`memlens run`: profile a job whose script knows nothing of memlens."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from memlens.launch.environment import VARIABLES

__all__ = ["command"]

_EPILOG = "\b\nEnvironment:\n" + "\n".join(
    f"  {name:<19} {text}" for name, text in VARIABLES.items()
)


class _RunCommand(click.Command):
    """Keeps the job's words as they are, and remembers whether they stood behind `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own: list[str] = []
        position = 0
        takes_value = {
            option
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for option in parameter.opts
        }
        literal = False
        while position < len(args):
            word = args[position]
            if word == "--":
                literal = True
                position += 1
                break
            if word == "-m" or not word.startswith("-") or word == "-":
                break
            own.append(word)
            position += 1
            if word in takes_value and position < len(args):
                own.append(args[position])
                position += 1
        job = args[position:]
        module = None
        if not literal and job[:1] == ["-m"]:
            if len(job) < 2:
                raise click.UsageError("-m needs the name of a module", ctx)
            module, job = job[1], job[2:]
        ctx.meta["memlens.job"] = (job, module, literal)
        return super().parse_args(ctx, own)


@click.command(
    cls=_RunCommand,
    epilog=_EPILOG,
    options_metavar="[OPTIONS] SCRIPT | -m MODULE | -- COMMAND  [ARGUMENTS]...",
)
@click.option(
    "--out",
    metavar="PATH|URL",
    help="Output folder; must not exist. Or a URL (s3://…) to which each rank copies its own when it "
    "ends. [default: memlens-runs/<time>-<name>]",
)
@click.option(
    "--join",
    is_flag=True,
    help="The folder may be there: this host is one of several that start the job. [default: on where "
    "the command names several hosts]",
)
@click.option("--steps", help="Training steps to record: 3:8 for steps 3 to 7. [default: all]")
@click.option(
    "--stacks/--no-stacks",
    default=None,
    help="Record the Python stack of each allocation. [default: on]",
)
@click.option(
    "--stack-depth", type=click.IntRange(min=1), help="Innermost Python frames kept. [default: 32]"
)
@click.option(
    "--device",
    metavar="cpu|cuda|auto",
    help="Kind of device whose allocator is recorded. [default: auto: CUDA where there is a device]",
)
@click.option(
    "--oom-only",
    is_flag=True,
    default=None,
    help="Write nothing to disk unless CUDA memory runs out; then, what led to it.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Show what the ranks hold while the job runs: below its output where stderr is a terminal, "
    "else a line on stderr now and then.",
)
@click.pass_context
def command(
    ctx: click.Context,
    out: str | None,
    join: bool,
    steps: str | None,
    stacks: bool | None,
    stack_depth: int | None,
    device: str | None,
    oom_only: bool | None,
    live: bool,
) -> None:
    """Profile a training job; the script is unchanged.

    \b
    memlens run train.py --lr 1e-3
    memlens run --out runs/a --steps 3:8 -m package.train
    memlens run -- torchrun --nproc-per-node 2 train.py

    The job sees its own arguments, working directory, output, signals and exit code. Every process
    of it that trains a model is recorded, each into a folder of its own within the run's folder.
    """  # noqa: D301  \b is for click
    from memlens.launch.command import become, parse_job
    from memlens.launch.environment import job_environment
    from memlens.launch.hosts import deepspeed_environment, names_several_hosts
    from memlens.options import Options, parse_steps

    words, module, literal = ctx.meta["memlens.job"]
    job = parse_job(words, module=module, literal=literal)
    options = Options.from_environment()
    if out is not None:
        options = options.with_out(out)
    join = join or names_several_hosts(words)
    if join and options.out is None and options.upload is None:
        click.echo(
            "memlens: each host will have a run of its own, as none is named that all of them share; "
            "name one with --out",
            err=True,
        )
    options = replace(options, join=join)
    if steps is not None:
        first, last = parse_steps(steps)
        options = replace(options, first_step=first, last_step=last)
    if stacks is not None:
        options = replace(options, stacks=stacks)
    if stack_depth is not None:
        options = replace(options, stack_depth=stack_depth)
    if device is not None:
        options = replace(options, device=device)
    if oom_only:
        options = replace(options, oom_only=True)
    if options.disabled:
        become(job, dict(os.environ))
    from memlens.disk.runs import create_run, plan_run

    shown = words if module is None else ["-m", module, *words]
    make = plan_run if options.oom_only else create_run
    run = make(options, command=tuple(shown))
    environment = job_environment(run, options, main=job.is_script)
    if run.is_dir():  # with --oom-only there is none yet
        environment |= deepspeed_environment(words if literal else (), run, environment)
    if live:
        from memlens.watching.beside import look_on
        from memlens.watching.look import look

        look_on(run, look)
    become(job, environment)
