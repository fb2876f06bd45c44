"""What a test is told when it needs too much, and the table of all that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memlens.analysis.change import Change
from memlens.report.text import count, plain, shorten
from memlens.units import format_bytes, parse_bytes
from memlens_integrations.pytest_plugin.baseline import Comparison, site_text
from memlens_integrations.pytest_plugin.budget import MEASURES, PEAK, RESERVED
from memlens_integrations.pytest_plugin.measure import Held, Measurement, Site

__all__ = ["exceeded_text", "grown_text", "summary_lines"]

MOST_SITES = 12
WIDEST = 76
"""Of what stands behind the numbers."""


def exceeded_text(over: Mapping[str, tuple[int, int]], measurement: Measurement) -> str:
    """A budget that does not suffice, and who holds the memory.

    Args:
        over: what was needed and what is allowed, in bytes, by what is limited; not empty.
        measurement: of the test.
    """
    first, (needed, allowed) = next(iter(over.items()))
    table = [("", "needed", "budget", "over")]
    table += [
        (name, _size(needed), _size(allowed), _size(needed - allowed, signed=True))
        for name, (needed, allowed) in over.items()
    ]
    lines = [
        f"memory budget exceeded: {first} came to {_exact(needed)}, "
        f"{_exact(needed - allowed)} more than the budget of {_exact(allowed)}",
        "",
        *_aligned(table),
    ]
    for name in over:
        lines += ["", f"{_moment(name, measurement)}:", *_holders(measurement.sites(name))]
    return "\n".join(lines)


def grown_text(comparison: Comparison, measurement: Measurement, accept: str) -> str:
    """What a test needs more than its baseline, and where.

    Args:
        comparison: in which something has grown.
        measurement: of the test, as it is now.
        accept: the command that makes this the new baseline.
    """
    figures, grown = comparison.figures, comparison.grown
    name, change = next(iter(grown.items()))
    allowed = comparison.allowed_bytes
    lines = [
        f"memory grew: {name} came to {_exact(change.b_bytes)}, "
        f"{_exact(change.difference_bytes)} more than its baseline of {_exact(change.a_bytes)}"
        + (f" ({_size(allowed)} are tolerated)" if allowed else ""),
        "",
        *_aligned(
            [("at most", "baseline", "now", "difference", "")]
            + [(each, *_numbers(figures[each]), "<-" if each in grown else "") for each in figures]
        ),
    ]
    if PEAK in grown:
        changes = comparison.sites_at_peak()
        lines += ["", f"{_moment(PEAK, measurement)}, what differs:"]
        lines += _differing(changes, _lines(measurement.sites(PEAK)))
    for each in grown:
        changes = comparison.sites_at_most(each) if each not in (PEAK, RESERVED) else {}
        at_peak = {key: of for key, of in comparison.sites_at_peak().items() if key[0] == each}
        # Mostly a category grows at the peak just as it does at its own highest.
        if changes and not (PEAK in grown and _differences(changes) == _differences(at_peak)):
            lines += ["", f"{_moment(each, measurement)}, what differs:"]
            lines += _differing(changes, _lines(measurement.sites(each)))
    lines += ["", *_circumstances(comparison), f"If this is as it should be: {accept}"]
    return "\n".join(lines)


def summary_lines(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of tests: peak, by what it is made up, and how it stands to budget and baseline.

    Args:
        measured: what the tests' reports carry; see `check.Measured`.
    """
    rows = [("peak", "budget", "baseline", "", "test", "at most")]
    for each in sorted(measured, key=lambda each: -each["most_bytes"][PEAK]):
        peak = each["most_bytes"][PEAK]
        limit, before = each["limits_bytes"].get(PEAK), each["baseline_bytes"]
        largest = sorted(
            (
                (size, name)
                for name, size in each["most_bytes"].items()
                if len(MEASURES[name]) == 1
                and size
                and name not in ("optimization", "weight_gradient")
            ),
            reverse=True,
        )
        rows.append(
            (
                _size(peak),
                _size(limit) if limit is not None else "-",
                _size(before) if before is not None else "-",
                ""
                if before is None
                else "="
                if before == peak
                else _size(peak - before, signed=True),
                plain(each["test"]),
                ", ".join(f"{name} {_size(size)}" for size, name in largest[:3]),
            )
        )
    return _aligned(rows, left=(4, 5))


def _moment(name: str, measurement: Measurement) -> str:
    if name in (PEAK, RESERVED):
        place = measurement.peak_place
        where = f", in {plain(place.module)}" if place.module else ""
        text = f"At the peak (step {place.step}, {place.phase.value}{where})"
        return text if name == PEAK else f"{text}, tensors"
    return f"When {name} was at its highest"


def _holders(sites: Mapping[Site, Held]) -> list[str]:
    ordered = sorted(sites.items(), key=lambda item: (-item[1].size_bytes, item[0]))
    rows = [
        (_size(held.size_bytes), site.category, _place(site_text(site), held.line))
        for site, held in ordered[:MOST_SITES]
    ]
    rest = sum(held.size_bytes for _, held in ordered[MOST_SITES:])
    if rest:
        rows.append((_size(rest), "", f"{len(ordered) - MOST_SITES:,} more"))
    return _aligned(rows, left=(1, 2))


def _differing(
    changes: Mapping[tuple[str, str], Change], lines: Mapping[tuple[str, str], int]
) -> list[str]:
    ordered = sorted(
        ((key, each) for key, each in changes.items() if each.difference_bytes),
        key=lambda item: (-abs(item[1].difference_bytes), item[0]),
    )
    rows = [("baseline", "now", "difference", "", "")]
    for (category, text), change in ordered[:MOST_SITES]:
        rows.append((*_numbers(change), category, _place(text, lines.get((category, text), 0))))
    rest = [change.difference_bytes for _, change in ordered[MOST_SITES:]]
    if rest:
        rows.append(("", "", _size(sum(rest), signed=True), "", f"{count(len(rest), 'more site')}"))
    return _aligned(rows, left=(3, 4))


def _lines(sites: Mapping[Site, Held]) -> dict[tuple[str, str], int]:
    return {(site.category, site_text(site)): held.line for site, held in sites.items()}


def _differences(changes: Mapping[tuple[str, str], Change]) -> dict[tuple[str, str], int]:
    return {key: each.difference_bytes for key, each in changes.items() if each.difference_bytes}


def _circumstances(comparison: Comparison) -> list[str]:
    """What else may be the reason, other than the code."""
    before, now = comparison.before, comparison.now
    found = []
    if before.torch != now.torch:
        found.append(f"The baseline was made with torch {before.torch}, this is {now.torch}.")
    if before.threads != now.threads:
        found.append(
            f"The baseline was made with {count(before.threads, 'thread')} of torch, this is "
            f"{now.threads}; some operators keep a buffer per thread (torch.set_num_threads)."
        )
    return found


def _place(text: str, line: int) -> str:
    """A site with the number of its line, as far as there is room."""
    if line and text.endswith(")"):
        text = f"{text[:-1]}:{line})"
    what, at, where = plain(text).rpartition(" @ ")
    return (
        shorten(what, max(16, WIDEST - len(where))) + at + where if at else shorten(where, WIDEST)
    )


def _numbers(change: Change) -> tuple[str, str, str]:
    difference = change.difference_bytes
    return (
        _size(change.a_bytes) if change.a_bytes else "-",
        _size(change.b_bytes) if change.b_bytes else "-",
        _size(difference, signed=True) if difference else "=",
    )


def _size(size_bytes: int, *, signed: bool = False) -> str:
    return format_bytes(size_bytes, signed=signed)


def _exact(size_bytes: int) -> str:
    """For people, and in whole bytes where that hides some."""
    text = format_bytes(size_bytes)
    return text if parse_bytes(text) == size_bytes else f"{text} ({size_bytes:,} B)"


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Columns of one width each; those of `left` begin at their left, numbers end at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
