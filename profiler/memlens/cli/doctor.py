"""`memlens doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from memlens.doctor import Check

__all__ = ["command"]

COLOURS = {"ok": "green", "missing": "yellow", "problem": "red", "not supported": "bright_black"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(as_json: bool) -> int:
    """Say what can be recorded here, what is missing, and the command to get it.

    Exits with 0 when CPU memory can be recorded, otherwise with 1.
    """
    from memlens.doctor import can_record_cpu, examine

    checks = examine()
    able = can_record_cpu(checks)
    if as_json:
        import json

        values = [
            {
                "group": check.group,
                "name": check.name,
                "status": check.status.value,
                "detail": check.detail,
                "fix": check.fix or None,
                "required": check.required,
            }
            for check in checks
        ]
        cuda = any(each.name == "CUDA memory" and each.status.value == "ok" for each in checks)
        record = {"cpu": able, "cuda": cuda}
        click.echo(json.dumps({"can_record": record, "checks": values}, indent=2))
    else:
        _print(checks, able)
    return 0 if able else 1


def _print(checks: list[Check], able: bool) -> None:
    """Without rich, whose absence is one of the things to report."""
    from memlens.doctor import Status
    from memlens.report.text import plain

    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            click.echo(("\n" if check is not checks[0] else "") + click.style(group, bold=True))
        status = click.style(f"{check.status.value:<13}", fg=COLOURS[check.status.value])
        click.echo(f"  {status}  {check.name:<14} {plain(check.detail)}")
        if check.fix and check.status is not Status.OK:
            click.echo(f"{'':17}{'':<14} -> {plain(check.fix)}")
    click.echo()
    if able:
        cuda = any(check.name == "CUDA memory" and check.status is Status.OK for check in checks)
        click.echo(f"{'CUDA and CPU' if cuda else 'CPU'} memory can be recorded here.")
    else:
        broken = [
            check.name for check in checks if check.required and check.status is not Status.OK
        ]
        click.echo(f"CPU memory cannot be recorded here; see {', '.join(broken)} above.")
