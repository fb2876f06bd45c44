"""What `memlens advise` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Column
from rich.text import Text

from memlens.report.plan.text import card_text, verdict_text
from memlens.report.tables import make_table
from memlens.report.text import plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from memlens.planning.advise import Advice, Option

__all__ = ["print_advice"]


def print_advice(advice: Advice, console: Console) -> None:
    """The answer, a table of what was tried, and what each change costs.

    Args:
        advice: what to print.
        console: where to.
    """
    console.print(Text(plain(advice.job), style="bold"))
    for line in _answer(advice):
        console.print(Text(line))
    known = [each for each in advice.options if each.fits is not None]
    table = make_table(
        Column("change", overflow="fold"),
        Column("peak reserved", justify="right", no_wrap=True),
        Column("saving", justify="right", no_wrap=True),
        Column("fits", no_wrap=True),
    )
    for each in known:
        table.add_row(
            plain(each.name),
            _size(each.reserved_peak_bytes),
            _size(each.saving_bytes) if each.changes else "",
            "yes" if each.fits else "no",
            style="bold" if each is advice.recommended else "",
        )
    console.print()
    console.print(table)
    changes = {change.name: change for each in known for change in each.changes}
    for change in changes.values():
        console.print()
        console.print(Text(f"{plain(change.name)}: {plain(change.what)}"))
        console.print(Text(f"  costs {change.cost.text} ({change.cost.source})", style="dim"))
    _print_unknown([each for each in advice.options if each.fits is None], console)
    console.print()
    console.print(Text("Simulated, not trained: what a change costs is told by its source."))


def _print_unknown(options: list[Option], console: Console) -> None:
    """What has to be done by hand, and by reason what was not tried."""
    by_reason: dict[str, list[str]] = {}
    for each in options:
        if not all(change.simulated for change in each.changes) and each.by_hand:
            (change,) = each.changes
            console.print()
            console.print(Text(f"{change.name}: {change.what}"))
            console.print(
                Text(
                    f"  not simulated, as the script has to be changed; it then needs "
                    f"{format_bytes(each.bound_bytes)} or more"
                )
            )
            console.print(Text(f"  costs {change.cost.text} ({change.cost.source})", style="dim"))
        else:
            by_reason.setdefault(each.reason, []).append(each.name)
    if by_reason:
        console.print()
    for reason, names in by_reason.items():
        console.print(Text(f"{plain(reason)}: {plain(', '.join(names))}", style="dim"))


def _answer(advice: Advice) -> list[str]:
    lines = [f"{card_text(advice.gpu)}: as it is, it {verdict_text(advice.verdict)}"]
    best = advice.recommended
    if best is None:
        lines.append("Nothing that was tried makes it fit.")
        by_hand = [
            each.name for each in advice.options if each.by_hand and each.may_fit(advice.gpu)
        ]
        if by_hand:
            lines.append(
                f"What has to be written into the script may: {', '.join(by_hand)}; see below."
            )
    elif best.changes:
        what = ", and ".join(plain(each.what) for each in best.changes)
        lines.append(f"The cheapest change that makes it fit: {what}")
    return lines


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else format_bytes(size_bytes)
