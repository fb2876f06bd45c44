"""JSON and CSV of a comparison, read back as other programs read them; and capacities."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_comparison import COMPARISONS, HOSTILE, SIX, failed, make_comparison

from memlens.comparing.capacity import Capacity, parse_capacity
from memlens.comparing.outputs.files import CSV_HEADER, write_csv, write_json
from memlens.comparing.results import Comparison
from memlens.disk.replace import replace_file
from memlens.errors import UsageError
from memlens.events import Category

MIB = 1 << 20


def rows_of(comparison: Comparison, path: Path) -> list[dict[str, str]]:
    write_csv(comparison, path)
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == CSV_HEADER
    return rows


@pytest.mark.parametrize("name", COMPARISONS)
def test_json_is_the_comparisons_own(name: str, tmp_path: Path) -> None:
    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    comparison = COMPARISONS[name]
    write_json(comparison, tmp_path / "new" / "comparison.json")
    text = (tmp_path / "new" / "comparison.json").read_text()
    assert json.loads(text, parse_constant=no_constant) == comparison.to_json()
    for variant in json.loads(text)["variants"]:
        if peak := variant["peak"]:
            assert sum(peak["categories"].values()) == peak["allocated_bytes"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_csv_has_a_line_for_every_variant(name: str, tmp_path: Path) -> None:
    comparison = COMPARISONS[name]
    rows = rows_of(comparison, tmp_path / "comparison.csv")
    for row, result in zip(rows, comparison.results, strict=True):
        assert row["name"].lstrip("'") == result.name
        assert row["status"] == result.status.value
        assert row["is_baseline"] == ("true" if result.name == comparison.baseline else "false")
        sizes = [row[f"{category.value}_bytes"] for category in Category]
        if result.peak is None:
            assert {*sizes, row["peak_bytes"], row["peak_step"], row["steps"]} == {""}
            assert row["reason"].lstrip("'") == result.reason
        else:
            assert int(row["peak_bytes"]) == result.peak.allocated_bytes
            assert sum(map(int, sizes)) == result.peak.allocated_bytes
            for category in Category:
                assert int(row[f"{category.value}_bytes"]) == result.peak.categories[category]


def test_the_differences(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in rows_of(SIX, tmp_path / "comparison.csv")}
    row = rows["adamw-r"]
    # 86.5 MiB of activations against 60.
    assert int(row["peak_difference_bytes"]) == -26.5 * MIB
    base_bytes = int(rows["adamw"]["peak_bytes"])
    assert float(row["peak_difference_percent"]) == -100 * 26.5 * MIB / base_bytes
    assert float(row["step_time_ratio"]) == 1.05
    assert float(row["final_loss_difference"]) == 0
    assert rows["adamw8bit"]["reused"] == "true"
    assert rows["adamw8bit"]["notes"] == SIX.results[2].notes[0]
    assert float(rows["adamw"]["peak_difference_percent"]) == 0
    assert rows["muon"]["peak_difference_bytes"] == ""


def test_nothing_is_compared_with_a_baseline_that_has_no_peak(tmp_path: Path) -> None:
    for name in ("baseline failed", "baseline of no bytes"):
        for row in rows_of(COMPARISONS[name], tmp_path / "comparison.csv"):
            assert row["peak_difference_bytes"] == row["peak_difference_percent"] == ""
            assert row["step_time_ratio"] == ""


def test_a_loss_that_is_not_a_number(tmp_path: Path) -> None:
    _, row = rows_of(COMPARISONS["huge"], tmp_path / "comparison.csv")
    assert math.isnan(float(row["final_loss"]))
    assert COMPARISONS["huge"].to_json()["variants"][1]["final_loss"] is None


def test_csv_is_as_the_standard_has_it(tmp_path: Path) -> None:
    path = tmp_path / "comparison.csv"
    write_csv(make_comparison(failed("a", 'says "no", twice')), path)
    head, line, end = path.read_bytes().split(b"\r\n")
    assert head == ",".join(CSV_HEADER).encode()
    assert line.startswith(b'a,failed,"says ""no"", twice",true,,')
    assert end == b""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_no_formula(start: str, tmp_path: Path) -> None:
    comparison = make_comparison(failed(f"{start}1+1", f"{start}cmd"))
    (row,) = rows_of(comparison, tmp_path / "comparison.csv")
    assert row["name"] == f"'{start}1+1"
    assert row["reason"] == f"'{start}cmd"


def test_names_come_back_letter_by_letter(tmp_path: Path) -> None:
    rows = rows_of(COMPARISONS["unicode"], tmp_path / "comparison.csv")
    names = ["オプティマイザ=アダム", "größer/ß", f"'{HOSTILE}", "'-1+1"]
    assert [row["name"] for row in rows] == names


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def broken(self: Path, target: Path) -> Any:
        assert path.read_bytes() == b"old"
        assert self.read_bytes() == b"new"
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        with pytest.raises(UsageError, match=r"cannot write .*file: No space left on device"):
            replace_file(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("text", "capacity", "shown"),
    [
        ('24GB:"RTX 4090"', Capacity("RTX 4090", 24 * 10**9), "RTX 4090 (22.35 GiB)"),
        ("24GB:RTX 4090", Capacity("RTX 4090", 24 * 10**9), "RTX 4090 (22.35 GiB)"),
        (" 80 GiB : 'H100: the big one' ", Capacity("H100: the big one", 80 << 30), None),
        ("24GiB", Capacity("", 24 << 30), "24.00 GiB"),
        ("24gib:", Capacity("", 24 << 30), "24.00 GiB"),
        ("24GB", Capacity("24GB", 24 * 10**9), "24GB (22.35 GiB)"),
        ('1.5MiB:""', Capacity("", 3 << 19), "1.50 MiB"),
        ("8GiB:\x1b[2J", Capacity("\x1b[2J", 8 << 30), "\\x1b[2J (8.00 GiB)"),
    ],
)
def test_capacities(text: str, capacity: Capacity, shown: str | None) -> None:
    assert parse_capacity(text) == capacity
    assert shown in (None, capacity.shown)


@pytest.mark.parametrize("text", ["", "RTX 4090", "24 parsecs:x", ":RTX", "-1GB", "0GB:nothing"])
def test_what_is_no_capacity(text: str) -> None:
    with pytest.raises(UsageError, match="24GB") as caught:
        parse_capacity(text)
    assert "\n" not in str(caught.value)


def test_what_fits_is_what_is_no_larger() -> None:
    peak = SIX.results[0].peak
    assert peak is not None
    assert Capacity("", peak.allocated_bytes).fits(peak)
    assert not Capacity("", peak.allocated_bytes - 1).fits(peak)
