"""Bytes and durations as text, and back. The only place where they are converted.

KiB, MiB, GiB and TiB mean powers of 1024; kB, MB, GB and TB mean powers of 1000.
"""

from __future__ import annotations

import re

from memlens.errors import UsageError

__all__ = ["format_bytes", "format_duration_ns", "parse_bytes"]

_FACTOR = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def format_bytes(size_bytes: int, *, signed: bool = False) -> str:
    """Write a size for people, in the largest binary unit that leaves at least 1.

    Args:
        size_bytes: the size; may be negative.
        signed: write a plus sign before positive sizes (for differences).

    Returns:
        Text such as ``"512 B"``, ``"1.50 MiB"`` or ``"+3.25 GiB"``.
    """
    sign = "-" if size_bytes < 0 else "+" if signed and size_bytes > 0 else ""
    value = float(abs(size_bytes))
    if value < 1024:
        return f"{sign}{int(value)} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        # 1023.995 would print as 1024.00 in this unit, so it belongs to the next one.
        if value < 1023.995:
            return f"{sign}{value:.2f} {unit}"
    return f"{sign}{value:.2f} TiB"


def parse_bytes(text: str) -> int:
    """Read a size such as ``"24GB"``, ``"1.5 GiB"`` or ``"4096"``.

    Returns:
        Whole bytes, rounded to the nearest.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTOR:
        raise UsageError(
            f"not a size: {text!r}; write a number and a unit, such as 24GB or 512MiB "
            "(KiB, MiB, GiB are powers of 1024; kB, MB, GB of 1000)"
        )
    return round(float(match[1]) * _FACTOR[match[2].lower()])


def format_duration_ns(duration_ns: int) -> str:
    """Write a duration for people: ``"850 ns"``, ``"12.3 ms"``, ``"4.56 s"``, ``"2 min 05 s"``."""
    if duration_ns < 1_000:
        return f"{duration_ns} ns"
    if duration_ns < 1_000_000:
        return f"{duration_ns / 1e3:.1f} µs"
    if duration_ns < 1_000_000_000:
        return f"{duration_ns / 1e6:.1f} ms"
    seconds = duration_ns / 1e9
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
