"""`memlens plan --max-batch`, `--max-tokens`, `--max-model`: the largest that fits on a card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memlens.cli.asked.job import planned_job

if TYPE_CHECKING:
    from memlens.catalogue.combinations import ShardingMode
    from memlens.catalogue.variant import Variant
    from memlens.comparing.job import ComparedJob
    from memlens.planning.search import Found
    from memlens.planning.simulated import Simulated
    from memlens.planning.sizes import JobWords, Ladder

__all__ = ["find_largest", "ladder_of", "print_found"]


def ladder_of(what: str, job: JobWords, multiple: int | None) -> Ladder:
    """The sizes to try.

    Raises:
        UsageError: the job has no such size.
    """
    from memlens.planning.sizes import TOKENS_MULTIPLE, model_ladder, number_ladder

    if what == "model":
        if multiple is not None:
            raise click.UsageError("--multiple-of goes with --max-batch or --max-tokens")
        return model_ladder(job)
    return number_ladder(what, job, multiple or (TOKENS_MULTIPLE if what == "tokens" else 1))


def find_largest(
    ladder: Ladder,
    runner: Simulated,
    variant: Variant,
    mode: ShardingMode | None,
    out: Path | None,
    *,
    fresh: bool,
) -> Found:
    """Search the sizes, each simulated.

    Args:
        ladder: the sizes.
        runner: what simulates.
        variant: takes the place of the job's optimizer.
        mode: how the job is sharded; None: as it is.
        out: folder for what is found.
        fresh: leave alone what an earlier search has found there.

    Raises:
        UsageError: there is no card to fit on.
    """
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


def print_found(found: Found, *, as_json: bool) -> None:
    """Print the largest that fits, and what was tried."""
    if as_json:
        import json

        click.echo(json.dumps(found.to_json(), indent=2))
        return
    from memlens.report.plan.search import found_lines

    for line in found_lines(found):
        click.echo(line)
