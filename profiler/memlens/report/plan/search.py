"""What `memlens plan --max-batch` and its kin print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memlens.report.plan.text import card_text, shortage_lines
from memlens.report.text import count, plain
from memlens.units import format_bytes

if TYPE_CHECKING:
    from memlens.planning.search import Found, Try

__all__ = ["found_lines"]


def found_lines(found: Found) -> list[str]:
    """The answer, every try in the order of its size, and where the next size runs out."""
    lines = [f"{card_text(found.gpu)}: {_headline(found)}", ""]
    tries = sorted(found.tries, key=lambda each: each.rung)
    width = max(len(found.what), *(len(each.label) for each in tries))
    lines.append(f"  {found.what:>{width}}  {'reserved at most':>16}")
    lines += [f"  {plain(each.label):>{width}}  {_outcome(each)}" for each in tries]
    lines.append(f"{count(len(tries), 'size')} tried.")
    if found.next is not None and found.next.verdict is not None and found.next.verdict.shortage:
        lines += ["", f"With {_named(found, found.next)}:"]
        lines += [f"  {line}" for line in shortage_lines(found.next.verdict.shortage)]
    if found.largest is not None:
        lines += ["", f"More: memlens report {plain(found.largest.result.run)}"]
    return lines


def _headline(found: Found) -> str:
    if found.largest is None:
        assert found.next is not None
        return f"not even {_named(found, found.next)} fits"
    answer = f"the largest that fits is {_named(found, found.largest)}"
    if found.next is None:
        return f"{answer}; {found.end}"
    if found.next.verdict is None:
        return f"{answer}; with {_named(found, found.next)} the job fails"
    only_just = found.largest.verdict is not None and found.largest.verdict.retries
    how = " only just" if only_just else ""
    return f"{answer} (it fits{how}; {plain(found.next.label)} does not)"


def _named(found: Found, of: Try) -> str:
    label = plain(of.label)
    return {"batch": f"a batch of {label}", "tokens": f"{label} tokens"}.get(found.what, label)


def _outcome(of: Try) -> str:
    verdict = of.verdict
    if verdict is None:
        return f"{'-':>16}  failed: {plain(of.result.reason)}"
    text = "fits" if verdict.fits else "does not fit"
    if verdict.fits and verdict.retries:
        text = "fits, but only just: the allocator has to give back what it has cached"
    size = format_bytes(verdict.reserved_peak_bytes)
    return f"{size:>16}  {text}" + ("  (from an earlier call)" if of.result.reused else "")
