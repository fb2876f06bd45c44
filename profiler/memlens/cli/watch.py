"""`memlens watch RUN`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="watch")
@click.argument("run")
def command(run: str) -> None:
    """Show what the ranks of a run hold while it is recorded, as `memlens run --live` does.

    RUN is the folder of a run that somebody has started, here or on a host that shares it. Ends when all
    ranks have ended, or with Ctrl-C; the job does not notice.
    """
    from memlens.cli.runs import check_run
    from memlens.disk.format import RUN_FILE
    from memlens.disk.headers import RUN_FIELDS, read_header
    from memlens.watching.look import watch

    folder = check_run(run)
    read_header(folder / RUN_FILE, RUN_FIELDS, what="run")
    try:
        watch(folder)
    except KeyboardInterrupt:  # the usual way out
        return
