"""`memlens report RUN`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="report")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--rollup",
    is_flag=True,
    help="Sum categories up to Weight, Activation, Optimization, Weight Gradient and Others.",
)
@click.option("--rank", type=click.IntRange(min=0), help="Only this rank.  [default: all]")
@click.option(
    "--step",
    type=click.IntRange(min=0),
    help="Look at the peak of this step.  [default: the run's]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many modules, allocations and growth suspects to list.",
)
def command(
    run: str, as_json: bool, rollup: bool, rank: int | None, step: int | None, top: int
) -> None:
    """Print what a run used its memory for: the peak, and how it came to it.

    RUN is the folder that `memlens run` made. Of several ranks, the one with the highest peak is
    shown in detail.
    """
    from memlens.cli.runs import open_run
    from memlens.report.view import ReportOptions

    capture = open_run(run)
    options = ReportOptions(rollup=rollup, rank=rank, step=step, top=top)
    if as_json:
        import json

        from memlens.report.payload import payload

        click.echo(json.dumps(payload(capture, options), indent=2))
    else:
        from memlens.report.terminal import make_console, print_report

        print_report(capture, options, make_console())
