"""`memlens view RUN...`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(name="view")
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; 0.0.0.0 lets other machines in, without any password.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 takes any that is free.  [default: 6006, or the next free one]",
)
def command(runs: tuple[str, ...], host: str, port: int | None) -> None:
    """Look at runs in a browser: starts TensorBoard, whose tab "Memory" shows them.

    RUNS are folders that `memlens run` made, folders of such folders, or URLs. Ctrl-C ends it.
    """
    from memlens.cli.serving import logdir_of, serve

    serve(logdir_of(runs), host, port)
