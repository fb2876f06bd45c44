"""A click group whose commands are imported when they are called, and not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

__all__ = ["Entry", "LazyGroup"]


class Entry(NamedTuple):
    """One row of the table of commands."""

    target: str
    """`module:attribute` of a click command."""
    help: str
    """One line for the list of commands."""


class LazyGroup(click.Group):
    """A group made from a table.

    Args:
        entries: name to entry, in the order in which to list them.
        arguments: whatever click.Group takes.
    """

    def __init__(self, *, entries: dict[str, Entry], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to call; a mistyped one gets a suggestion."""
        if args and args[0] not in self._entries and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]}{self._suggestion(args[0])}")
        return super().resolve_command(ctx, args)

    def _suggestion(self, name: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(name, self._entries, n=1)
        if close:
            return f"; did you mean {close[0]}?"
        if name.endswith(".py"):
            return f"; did you mean: memlens run {name}?"
        return f"; the commands are {', '.join(self._entries)}"

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])
