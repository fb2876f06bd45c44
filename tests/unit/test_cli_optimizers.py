"""`memlens optimizers`: table, page, chart, JSON, and measuring."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len

from memlens.catalogue import installed, measured
from memlens.catalogue.table import CATALOGUE, find
from memlens.cli import main
from memlens.events import Category
from memlens.palette import CATEGORY_SERIES
from memlens.report.optimizers.chart import bars_of
from memlens.report.optimizers.view import implementations_of, number

SVG = "{http://www.w3.org/2000/svg}"

PROBE = """
import sys
from memlens.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted(set(sys.modules) & {"torch", "transformers", "bitsandbytes"}), file=sys.stderr)
"""

MEASURED_NOW = {
    dtype: {
        "matrix": {"optimizer_state": 3 * 1024 * 1024, "master_weight": 0},
        "vector": {"optimizer_state": 8192, "master_weight": 0},
        "stack": {
            "weight": size * 8 * (512 * 512 + 512),
            "gradient": size * 8 * (512 * 512 + 512),
            "optimizer_temporary": 0,
        },
    }
    for dtype, size in (("fp32", 4), ("bf16", 2))
}


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `memlens optimizers …`."""
    with pytest.raises(SystemExit) as exit_:
        main(["optimizers", *words])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


@pytest.fixture
def width(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no optional library were installed."""
    monkeypatch.setattr(installed, "version_of", lambda name: None)


@pytest.fixture
def python_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a script in the place of the interpreter that measures."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.mark.parametrize("words", [(), ("adamw8bit",), ("--json",), ("adamw", "--json")])
def test_it_is_quick_and_imports_no_library(words: tuple[str, ...]) -> None:
    def answer(*arguments: str) -> tuple[float, str]:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=60
        )
        return time.perf_counter() - start, done.stderr

    # The best of five, because other tests may be busy beside us.
    bare = min(answer("-c", "pass")[0] for _ in range(5))
    answers = [answer("-c", PROBE, "optimizers", *words) for _ in range(5)]
    assert {stderr for _, stderr in answers} == {"[]\n"}
    assert min(seconds for seconds, _ in answers) - bare < 1.0


@pytest.mark.parametrize("columns", [40, 64, 80, 100, 140])
def test_the_table_has_every_optimizer_and_fits(
    capsys: pytest.CaptureFixture[str], width: Any, columns: int
) -> None:
    width(columns)
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= columns
    for name in CATALOGUE:
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    assert ("ZeRO" in out) == (columns >= 80)
    assert ("bitsandbytes" in out) == (columns >= 96)


def test_the_table_shows_measured_figures(capsys: pytest.CaptureFixture[str], width: Any) -> None:
    width(100)
    _, out, _ = call(capsys)
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["adamw-foreach"][:4] == ["8", "4", "1", "torch"]
    assert rows["adamw-fused"][:3] == ["8", "4", "0"]
    assert rows["adamw8bit"][:3] == ["2.033", "2.033", rows["adam8bit"][2]]
    assert rows["lomo"][-3:] == ["always", "no", "yes"]
    assert rows["adamw"][-5:] == ["yes"] * 5
    assert rows["paged-adamw8bit"][-4:] == ["!", "-", "!", "no"]


def test_the_table_groups_by_family_and_indents_implementations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = call(capsys)
    names = [line.rstrip() for line in out.splitlines()]
    families = {row.family for row in CATALOGUE.values()}
    assert [name for name in names if name in families] == list(
        dict.fromkeys(row.family for row in CATALOGUE.values())
    )
    at = next(at for at, line in enumerate(names) if line.startswith(" adamw "))
    following = [line.split()[0] for line in names[at + 1 : at + 4]]
    assert following == [row.name for row in implementations_of(find("adamw"))]
    assert all(line.startswith("   adamw-") for line in names[at + 1 : at + 4])


def test_what_was_not_measured_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: Any
) -> None:
    width(100)
    rows = {"lion": {"failed": "it broke"}}
    monkeypatch.setattr(measured, "_file", lambda: {"torch": "2", "device": "cpu", "rows": rows})
    _, out, _ = call(capsys)
    line = next(line for line in out.splitlines() if line.startswith(" lion "))
    assert line.split()[1:4] == ["~4", "~2", "?"]
    assert "~ from the library's layout" in " ".join(out.split())
    _, page, _ = call(capsys, "lion")
    assert "not: it broke" in page
    assert "In a step" not in page
    _, text, _ = call(capsys, "lion", "--json")
    (lion,) = json.loads(text)["optimizers"]
    assert (lion["measured"], lion["failure"]) == (None, "it broke")


def test_libraries_that_are_missing(
    capsys: pytest.CaptureFixture[str], no_library: None, width: Any
) -> None:
    width(100)
    _, out, _ = call(capsys)
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["lion"][3:5] == ["pytorch-optimizer", "no"]
    assert rows["adamw"][3:5] == ["torch", "yes"]
    _, page, _ = call(capsys, "lion")
    assert 'pip install "memlens[pytorch-optimizer]"; missing here: pytorch-optimizer' in page
    code, out, err = call(capsys, "lion", "--measure")
    assert (code, out) == (2, "")
    assert err == (
        "memlens: pytorch-optimizer is needed to measure lion; install it with: "
        'pip install "memlens[pytorch-optimizer]"\n'
    )


@pytest.mark.parametrize("columns", [40, 80, 100])
@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_page_says_all_that_the_row_says(
    capsys: pytest.CaptureFixture[str], width: Any, name: str, columns: int
) -> None:
    width(columns)
    code, out, err = call(capsys, name)
    assert (code, err) == (0, "")
    row = find(name)
    lines = out.splitlines()
    assert max(map(cell_len, lines)) <= columns
    if columns < 100:
        return
    # Labels stand at the left, and texts go on below themselves.
    text = " ".join(out.split())
    said = [
        row.title, row.family, row.paper, row.home, row.when, row.when_not, row.expected.source,
        row.lr_source, row.implementation_note, row.cpu, row.zero, row.fsdp, *row.takes, *row.defects,
        *(f"{option}={value}" for option, value in row.options.items()),
    ]  # fmt: skip
    if row.claim:
        said += [row.claim.source, row.claim.verdict or "holds"]
    for saying in said:
        assert " ".join(saying.split()) in text
    for each in implementations_of(row):
        assert sum(line.split()[:1] == [each.name] for line in lines) == 1
    assert f"memlens optimizers {name} --measure" in text
    assert ("pip install" in text) == bool(row.extra)
    assert (f"{name}+no-retain-grad" in text) == row.in_backward


def test_a_page_shows_measured_beside_expected(
    capsys: pytest.CaptureFixture[str], width: Any
) -> None:
    width(100)
    _, out, _ = call(capsys, "adamw8bit")
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    at = next(at for at, line in enumerate(out.splitlines()) if "2-D fp32" in line)
    table = [line.split() for line in out.splitlines()[at : at + 3]]
    assert table[0] == ["2-D", "fp32", "2-D", "bf16", "1-D", "fp32", "1-D", "bf16", "claimed"]
    assert table[1] == ["measured", "2.033", "2.033", "2.281", "2.281", "2"]
    assert table[2] == ["expected", "2.031", "2.031", "2.031", "2.031"]
    assert rows["gradients,"] == ["at", "most", "0.5", "0.25", "0.125", "0.125"]
    assert "bitsandbytes" in out and measured.torch_version() in out


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--json")
    assert code == 0
    payload = json.loads(out)
    assert payload["unit"] == "bytes per parameter"
    assert [each["name"] for each in payload["optimizers"]] == list(CATALOGUE)
    kinds: dict[str, Any] = {
        "name": str, "title": str, "family": str, "home": str, "when": str, "when_not": str,
        "expected": dict, "paper": str, "extra": str, "takes": list, "fixed": dict, "options": dict,
        "lr_scale": (int, float), "lr_source": str, "matrices_only": bool, "rest": str,
        "precision": str, "in_backward": bool, "always_in_backward": bool, "implementation": str,
        "implementation_note": str, "cpu": str, "runs_on_cpu": bool, "zero": str, "fsdp": str,
        "runs_under_fsdp": bool,
        "claim": (dict, type(None)), "defects": list, "libraries": list, "missing_libraries": list,
        "install": (str, type(None)), "measured": (dict, type(None)), "failure": (str, type(None)),
    }  # fmt: skip
    for each in payload["optimizers"]:
        assert set(each) == set(kinds)
        for name, kind in kinds.items():
            assert isinstance(each[name], kind), name
        if each["measured"]:
            assert set(each["measured"]) == {"device", "torch", "libraries", "now", "fp32", "bf16"}
            for dtype in ("fp32", "bf16"):
                figures = measured.measured(each["name"], dtype)
                assert figures is not None and each["measured"][dtype] == vars(figures)


def test_json_of_one_has_its_implementations(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "adamw", "--json")
    names = [each["name"] for each in json.loads(out)["optimizers"]]
    assert names == ["adamw", "adamw-foreach", "adamw-loop", "adamw-fused"]


def test_measuring_shows_what_was_measured_now(
    capsys: pytest.CaptureFixture[str], python_that: Any, width: Any
) -> None:
    width(100)
    python_that(f"echo a greeting\necho '{json.dumps(MEASURED_NOW)}'")
    code, out, err = call(capsys, "lion", "--measure")
    assert code == 0
    assert err.startswith("measuring lion") and err.count("\n") == 1
    (line,) = [line for line in out.splitlines() if line.startswith("measured  ")][:1]
    assert line.split()[1:] == ["3", "3", "1", "1", "4"]
    assert "measured now on the cpu with torch" in " ".join(out.split())
    assert "--measure" not in out, "it has just been done"
    _, text, _ = call(capsys, "lion", "--measure", "--json")
    (lion,) = json.loads(text)["optimizers"]
    assert lion["measured"]["now"] is True
    assert lion["measured"]["fp32"]["matrix_state"] == 3
    assert lion["measured"]["torch"] == installed.version_of("torch")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo a warning >&2\necho 'memlens: it broke' >&2\nexit 2", "it broke"),
        ("exit 3", "exit code 3"),
        ("echo 'Traceback' >&2\necho 'ValueError: no' >&2\nexit 1", "ValueError: no"),
        ("echo nothing that one could read", "its answer cannot be read"),
        ("true", "its answer cannot be read"),
    ],
)
def test_a_failure_to_measure_is_one_line(
    capsys: pytest.CaptureFixture[str], python_that: Any, script: str, reason: str
) -> None:
    python_that(script)
    code, out, err = call(capsys, "lion", "--measure")
    assert (code, out) == (1, "")
    progress, *errors = err.splitlines()
    assert progress.startswith("measuring lion")
    assert errors == [f"memlens: could not measure lion: {reason}"]


@pytest.mark.slow
def test_measuring_in_earnest() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memlens", "optimizers", "sgd", "--measure", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["optimizers"][0]["measured"]
    assert first["now"] is True
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        assert first[dtype]["matrix_state"] == 0
        assert first[dtype]["gradient"] == size
        assert first[dtype]["no_retain_gradient"] == size / 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adamm",), "no optimizer 'adamm' in the catalogue; did you mean adam, adamw"),
        (("adamw", "adam"), "unexpected extra argument"),
        (("--measure",), "--measure needs the NAME of an optimizer"),
        (("--dtype", "bf16"), "--dtype goes with --chart"),
        (("--only", "adamw"), "--only goes with --chart"),
        (("--dtype", "fp16", "--chart", "x.svg"), "'fp16' is not one of"),
        (("--chart", "x.pdf"), "name it .svg or .png"),
        (("adamw", "--chart", "x.svg"), "--chart does not go with NAME"),
        (("--json", "--chart", "x.svg"), "--chart does not go with --json"),
        (("--chart", "x.svg", "--only", "adamm"), "no optimizer 'adamm'"),
        (("--chart", "x.svg", "--only", "lion+no-retain-grad"), "lion cannot update within"),
        (("--chart", "x.svg", "--only", "galore-adamw:rank=4"), "with their default options"),
        (("--chart", "x.svg", "--only", "as-is"), "with their default options"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("memlens: ") and err.count("\n") == 1
    assert message.lower() in err.lower()
    assert not list(tmp_path.iterdir())


def _segments(svg: ElementTree.Element) -> dict[str, float]:
    """Total width of all segments by colour."""
    found: dict[str, float] = {}
    for path in svg.iter(f"{SVG}path"):
        fill = re.search(r"fill: (#\w+)", path.get("style", ""))
        if "clip-path" not in path.attrib or fill is None:
            continue
        across = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))[::2]]
        colour = fill[1].upper()
        found[colour] = found.get(colour, 0.0) + max(across) - min(across)
    return found


def test_the_chart_draws_what_was_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "chart.svg"
    only = "adamw-foreach,adamw-mixed,adamw+no-retain-grad"
    code, out, _ = call(capsys, "--chart", str(path), "--only", only)
    assert (code, out) == (0, f"wrote {path}: 3 bars\n")
    svg = ElementTree.fromstring(path.read_bytes())
    texts = ["".join(each.itertext()) for each in svg.iter(f"{SVG}text")]
    # 4 + 8 + 2 and temporaries; 8 + 4 + 4; 8 + 0.5 + 1.
    assert [text for text in texts if text in only.split(",")] == [
        "adamw+no-retain-grad",
        "adamw-mixed",
        "adamw-foreach",
    ]
    assert "bytes per parameter" in texts
    assert "copies of the fp32 parameters, 4 bytes each" in texts
    widths = _segments(svg)
    colours = {each.members[0]: each.colour.upper() for each in CATEGORY_SERIES}
    bars = bars_of("fp32", only.split(","))
    unit = widths[colours[Category.MASTER_WEIGHT]] / 4
    for category in bars[0].amounts:
        drawn = widths[colours[category]] / unit
        # Widths are written with six decimals of a point.
        assert drawn == pytest.approx(sum(bar.amounts[category] for bar in bars), abs=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_chart_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    path = tmp_path / "chart.png"
    assert call(capsys, "--chart", str(path), "--dtype", dtype)[0] == 0
    with Image.open(path) as image:
        assert image.size[0] == 1760
        image.verify()
    bars = bars_of(dtype)
    # To a thousandth of a byte: counters of a few bytes do not change the order of names.
    order = [(round(bar.total, 3), bar.name) for bar in bars]
    assert order == sorted(order)
    names = {bar.name for bar in bars}
    assert names >= {"adamw", "adamw-fused", "adamw-r", "adamw+no-retain-grad", "lomo"}
    assert not names & {"sgd-loop", "adam-foreach"}


def test_the_same_chart_is_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chart.svg"
    contents = set()
    for _ in range(2):
        call(capsys, "--chart", str(path))
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_numbers_stand_point_below_point() -> None:
    assert [number(each) for each in (8, 2.0333, 0.5, 16, 1e-9)] == [
        "  8    ", "  2.033", "  0.5  ", " 16    ", "  0    ",
    ]  # fmt: skip
