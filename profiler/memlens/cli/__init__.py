"""The command line: one table of commands, and the only place that prints errors.

Nothing heavy is imported here, nor by any command module when it is imported: `--help` of every
command has to come up at once, also where torch or TensorBoard are broken or missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from memlens import __version__
from memlens.cli.group import Entry, LazyGroup
from memlens.errors import MemlensError

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: dict[str, Entry] = {
    "run": Entry("memlens.cli.run:command", "Profile a training job; the script is unchanged."),
    "watch": Entry("memlens.cli.watch:command", "Show what a run holds while it is recorded."),
    "import": Entry("memlens.cli.import_:command", "Make a run of a CUDA memory snapshot."),
    "report": Entry("memlens.cli.report:command", "Print what a run used its memory for."),
    "compare": Entry("memlens.cli.compare:command", "Run a job under several optimizers."),
    "diff": Entry(
        "memlens.cli.diff:command", "Compare two runs, down to module and allocation site."
    ),
    "plan": Entry("memlens.cli.plan:command", "Say what a job needs on a GPU, without one."),
    "advise": Entry(
        "memlens.cli.advise:command", "Say what to change so that a job fits on a GPU."
    ),
    "optimizers": Entry(
        "memlens.cli.optimizers:command", "List the optimizers, and what they cost."
    ),
    "estimate": Entry(
        "memlens.cli.estimate:command", "Say in an instant about how much memory a model needs."
    ),
    "replay": Entry(
        "memlens.cli.replay:command", "Say what memory a job takes under other settings."
    ),
    "view": Entry("memlens.cli.view:command", "Look at runs in a browser, with TensorBoard."),
    "export": Entry("memlens.cli.export:command", "Write a run for another tool (TensorBoard)."),
    "doctor": Entry("memlens.cli.doctor:command", "Say what can be recorded here, and what not."),
}
"""Every command: where it is, and one line about it. The order is that of `memlens --help`."""

INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended (128 + SIGINT)."""


@click.command(
    cls=LazyGroup,
    entries=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="To begin: memlens run train.py, then memlens report memlens-runs/NAME.",
)
@click.version_option(__version__, prog_name="memlens", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Where does every byte of a training job go? A memory profiler for PyTorch."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Commands return None, or the exit code that they want; anything they cannot do, they raise.
    """
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments)))


def _exit_code(arguments: list[str]) -> int:
    try:
        code = _invoke(arguments)
        # Here, where a closed pipe can still be caught, and not when the interpreter shuts down.
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "memlens"
        return _complain(f"{error.format_message().rstrip('.')} (see {where} --help)", 2)
    except MemlensError as error:
        return _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Give the interpreter a stdout that it can flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("MEMLENS_DEBUG") == "1":
            raise
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _complain(f"internal error: {text} (MEMLENS_DEBUG=1 shows where)", 1)


def _invoke(arguments: list[str]) -> int:
    if instruction := os.environ.get("_MEMLENS_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "memlens", "_MEMLENS_COMPLETE", instruction)
    with cli.make_context("memlens", arguments) as context:
        result = cli.invoke(context)
    return result if isinstance(result, int) else 0


def _complain(text: str, code: int) -> int:
    from memlens.report.text import plain

    # One line, whatever a file name or another library's message holds.
    line = plain(" ".join(text.split()))
    print(f"memlens: {line}", file=sys.stderr)
    return code
