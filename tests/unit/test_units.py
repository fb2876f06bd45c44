"""Sizes and durations as text, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.errors import UsageError
from memlens.units import format_bytes, format_duration_ns, parse_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1024 * 1024 - 1, "1.00 MiB"),
        (1 << 20, "1.00 MiB"),
        (100 * (1 << 20) + (1 << 19), "100.50 MiB"),
        (1 << 30, "1.00 GiB"),
        (80 * (1 << 30), "80.00 GiB"),
        (1 << 40, "1.00 TiB"),
        (5000 * (1 << 40), "5000.00 TiB"),
        (-1536, "-1.50 KiB"),
    ],
)
def test_format_bytes(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(1536, "+1.50 KiB"), (-1536, "-1.50 KiB"), (0, "0 B")]
)
def test_format_bytes_signed(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes, signed=True) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("0", 0),
        ("512 B", 512),
        ("1KiB", 1024),
        ("1.5 GiB", 3 << 29),
        ("24GB", 24_000_000_000),
        ("1 kb", 1000),
        ("  2 TiB ", 2 << 40),
    ],
)
def test_parse_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "1 PiB", "1 2", "1.GiB", "0x10", "١٢"])
def test_what_is_not_a_size_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(UsageError, match="write a number and a unit"):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_printed_size_reads_back_within_its_rounding(size_bytes: int) -> None:
    # Two decimals of a unit: half a hundredth of it may be lost, which below 1024 is nothing.
    back = parse_bytes(format_bytes(size_bytes))
    assert abs(back - size_bytes) <= max(size_bytes * 0.005, 0)


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0 ns"),
        (850, "850 ns"),
        (1_500, "1.5 µs"),
        (12_300_000, "12.3 ms"),
        (4_560_000_000, "4.56 s"),
        (125_000_000_000, "2 min 05 s"),
        (3_599_600_000_000, "60 min 00 s"),
    ],
)
def test_format_duration(duration_ns: int, text: str) -> None:
    assert format_duration_ns(duration_ns) == text
