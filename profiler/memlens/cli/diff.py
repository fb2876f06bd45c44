"""`memlens diff RUN_A RUN_B`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="diff")
@click.argument("run_a")
@click.argument("run_b")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@click.option(
    "--rollup",
    is_flag=True,
    help="Sum categories up to Weight, Activation, Optimization, Weight Gradient and Others.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=0),
    help="This rank of both.  [default: in each, the one with the highest peak]",
)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    help="Compare the peaks of this step.  [default: those of the runs]",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many modules and allocation sites to list.",
)
def command(
    run_a: str,
    run_b: str,
    as_json: bool,
    rollup: bool,
    rank: int | None,
    step: int | None,
    top: int,
) -> None:
    """Compare two runs, down to module and allocation site.

    RUN_A and RUN_B are folders that `memlens run` made. Differences are B less A: positive where B
    needs more.
    """
    from memlens.cli.runs import open_run
    from memlens.report.diff.view import view_diff
    from memlens.report.view import ReportOptions

    options = ReportOptions(rollup=rollup, rank=rank, step=step, top=top)
    view = view_diff(open_run(run_a), open_run(run_b), options)
    if as_json:
        import json

        from memlens.report.diff.payload import diff_payload

        click.echo(json.dumps(diff_payload(view, options), indent=2))
    else:
        from memlens.report.diff.terminal import print_diff
        from memlens.report.terminal import make_console

        print_diff(view, options, make_console())
