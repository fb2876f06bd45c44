"""The picture of a run, measured in its own SVG and in the pixels of its PNG."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.fake_capture import Block, FakeRank, make_capture
from tests.support.large import make_capture as make_capture_on_disk
from tests.support.llama_job import llama_job, make_rank
from tests.support.small_runs import HOSTILE, RUNS

import memlens
from memlens.capture import Capture
from memlens.cli import main
from memlens.events import Category
from memlens.exporters import export
from memlens.palette import CATEGORY_SERIES
from memlens.report.text import plain
from memlens.units import format_bytes

SVG = "{http://www.w3.org/2000/svg}"
Corners = list[tuple[float, float]]


def drawn(capture: Capture, folder: Path) -> ElementTree.Element:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export(capture, "svg", folder / "picture.svg")
    return ElementTree.fromstring(path.read_bytes())


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()).strip() for each in svg.iter(f"{SVG}text")]


def corners(path: ElementTree.Element) -> Corners:
    numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def fill(element: ElementTree.Element) -> str:
    found = re.search(r"fill: (#\w+)", element.get("style", ""))
    return found[1].upper() if found else ""


def bars(svg: ElementTree.Element) -> list[dict[str, float]]:
    """Width of every segment by colour, one mapping per bar, topmost first."""
    found: dict[float, dict[str, float]] = defaultdict(dict)
    for path in clipped(svg, "patch_"):
        across, down = zip(*corners(path), strict=True)
        found[sum(down) / len(down)][fill(path)] = max(across) - min(across)
    return [found[y] for y in sorted(found)]


def areas(svg: ElementTree.Element) -> list[dict[str, float]]:
    """Area of every band by colour, one mapping per timeline, the left one first."""
    found = [
        {fill(path): area(corners(path)) for path in clipped(group, "FillBetween")}
        for group in svg.iter(f"{SVG}g")
        if group.get("id", "").startswith("axes_")
    ]
    return [bands for bands in found if bands]


def clipped(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """What is coloured and cut off at the axes, as legend and backgrounds of labels are not."""
    return [
        path
        for group in svg.iter(f"{SVG}g")
        if group.get("id", "").startswith(kind)
        for path in group.iter(f"{SVG}path")
        if "clip-path" in path.attrib and fill(path)
    ]


def area(outline: Corners) -> float:
    x, y = np.array(outline).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def test_segments_of_bars_are_as_long_as_their_bytes(any_run: Capture, tmp_path: Path) -> None:
    found = bars(drawn(any_run, tmp_path))
    peaks = [rank.peak() for rank in any_run.ranks]
    longest = max((sum(bar.values()) for bar in found), default=0)
    scale = longest / (max(peak.allocated_bytes for peak in peaks) or 1)
    expected = [
        {
            series.colour.upper(): series.amount(peak.categories) * scale
            for series in CATEGORY_SERIES
            if series.amount(peak.categories)
        }
        for peak in peaks
    ]
    assert len(found) == len([bar for bar in expected if bar])
    for bar, wanted in zip(found, [bar for bar in expected if bar], strict=True):
        # Coordinates in an SVG have six decimals.
        assert bar == pytest.approx(wanted, abs=1e-4)


def test_bands_are_as_large_as_what_was_held(tmp_path: Path) -> None:
    """Every event of this job is drawn, so areas are exact; coordinates have six decimals."""
    capture = llama_job()
    first, second = areas(drawn(capture, tmp_path))
    for bands, rank in ((first, capture.ranks[1]), (second, capture.ranks[0])):
        timeline = rank.timeline()
        width = np.diff(timeline.time_ns)
        held = {
            series.colour.upper(): int((timeline.categories[series.members[0]][:-1] * width).sum())
            for series in CATEGORY_SERIES
        }
        held = {colour: size for colour, size in held.items() if size}
        scale = sum(bands.values()) / sum(held.values())
        expected = {colour: size * scale for colour, size in held.items()}
        assert bands == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_every_rank_has_a_bar(count: int, tmp_path: Path) -> None:
    ranks = [make_rank(rank, steps=1, tokens=2048 + 2 * rank) for rank in range(count)]
    svg = drawn(make_capture(*ranks), tmp_path)
    assert len(bars(svg)) == count
    for rank in ranks:
        assert f"rank {rank.rank}" + (", cpu" if count == 1 else "") in texts(svg)
        assert format_bytes(rank.peak().allocated_bytes) in texts(svg)
    assert len(areas(svg)) == 1  # their peaks are within 2 %


def test_of_many_ranks_three_have_a_bar_and_all_a_line(tmp_path: Path) -> None:
    ranks = [make_rank(rank, steps=1, tokens=2048 - 16 * rank) for rank in range(40)]
    svg = drawn(make_capture(*ranks), tmp_path)
    shown = texts(svg)
    assert len(bars(svg)) == 3
    assert {"highest: rank 0", "median: rank 20", "lowest: rank 39", "all 40 ranks"} <= {*shown}
    high, low = ranks[0].peak().allocated_bytes, ranks[39].peak().allocated_bytes
    assert f"spread {format_bytes(high - low)}" in shown
    assert f"({100 * (high - low) / high:.1f} %)" in shown
    assert any("highest: rank 0" in text for text in shown if text.startswith("Over time"))
    assert any("lowest: rank 39" in text for text in shown if text.startswith("Over time"))


def test_ranks_that_are_all_alike(tmp_path: Path) -> None:
    svg = drawn(make_capture(*(make_rank(rank, steps=1) for rank in range(40))), tmp_path)
    assert "all alike" in texts(svg)
    assert len(areas(svg)) == 1


def test_reserved_memory_and_devices_are_told(tmp_path: Path) -> None:
    capture = RUNS["cuda"](tmp_path / "run")
    svg = drawn(capture, tmp_path)
    shown = texts(svg)
    assert {"rank 0, cuda:0", "rank 0, cuda:1"} <= {*shown}
    for rank in capture.ranks:
        reserved = rank.peak().reserved_bytes
        assert reserved
        assert f"of {format_bytes(reserved)} reserved" in shown
    assert "Over time, rank 0, cuda:1 (line: reserved)" in shown
    [line] = [
        corners(path)
        for path in svg.iter(f"{SVG}path")
        if "stroke-width: 0.9" in path.get("style", "")
    ]
    # The line and the weights' band share an axis: bytes per unit of length are the same.
    most = capture.ranks[1].reserved_peak_bytes
    weights = next(p for p in clipped(svg, "FillBetween") if fill(p) == "#0072B2")
    bottom = max(y for _, y in corners(weights))
    held = max(capture.ranks[1].timeline().categories[Category.WEIGHT])
    scale = (bottom - min(y for _, y in corners(weights))) / int(held)
    assert most is not None
    assert bottom - min(y for _, y in line) == pytest.approx(most * scale, rel=1e-4)


def test_peak_steps_and_command_are_named(tmp_path: Path) -> None:
    capture = llama_job(steps=6)
    shown = texts(drawn(capture, tmp_path))
    peak = capture.ranks[1].peak()
    what = f"peak {format_bytes(peak.allocated_bytes)}, step {peak.step}, {peak.phase.value}"
    assert what in shown
    assert {"step 0", "1", "5"} <= {*shown}
    assert any("torchrun --nproc-per-node 2" in text for text in shown)
    assert any(capture.info.name in text and "on rank 1" in text for text in shown)
    for category in ("weight", "optimizer state", "activation", "optimizer temporary"):
        assert category in shown


@pytest.mark.parametrize("name", [HOSTILE, "$x^2$ & </svg>", "\udc80\x00", "名前"])
def test_names_mean_nothing_but_themselves(name: str, tmp_path: Path) -> None:
    blocks = [Block(8, Category.WEIGHT, 1, None, name, name)]
    capture = make_capture(FakeRank(0, blocks, device=name), name=name, command=(name,))
    svg = drawn(capture, tmp_path)
    assert not list(svg.iter(f"{SVG}script"))
    assert any(plain(name)[:8] in text for text in texts(svg))
    export(capture, "png", tmp_path / "picture.png")


@pytest.mark.parametrize("to", ["svg", "png"])
def test_the_same_run_is_the_same_picture(to: str, tmp_path: Path) -> None:
    first, second = (export(llama_job(), to, tmp_path / str(n)).read_bytes() for n in (1, 2))
    assert first == second
    assert b"<dc:date>" not in first


def test_every_rule_for_dark_pages_has_something_to_change(tmp_path: Path) -> None:
    drawn(make_capture(*(make_rank(rank, steps=2) for rank in range(40))), tmp_path)
    content = (tmp_path / "picture.svg").read_text()
    style, body = content.split("</style>", 1)
    assert "@media (prefers-color-scheme: dark)" in style
    rules = re.findall(r'^(\w*)\[style\*="(.*?)"\]', style, re.MULTILINE)
    assert len(rules) == 7
    unused = [
        what
        for element, what in rules
        if not re.search(rf'<{element or "[a-z]+"} [^>]*style="[^"]*{what}', body)
    ]
    assert unused == ["stroke: #777777"]  # charts of comparisons have such lines
    # What is written on a segment keeps its colour, as the segment does.
    assert re.search(r'<text style="[^"]*fill: #ffffff', body)


def test_a_png_shows_every_category(tmp_path: Path) -> None:
    path = export(llama_job(), "png", tmp_path / "picture.png")
    picture = Image.open(path).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    assert picture.size[0] == 1760
    for series in CATEGORY_SERIES:
        colour = [int(series.colour[at : at + 2], 16) for at in (1, 3, 5)]
        count = int((pixels == colour).all(1).sum())
        held = any(
            rank.timeline().categories[series.members[0]].any() for rank in llama_job().ranks
        )
        assert (count > 100) == held, series.key


def test_every_run_can_be_drawn_in_pixels(any_run: Capture, tmp_path: Path) -> None:
    picture = Image.open(export(any_run, "png", tmp_path / "picture.png")).convert("L")
    assert np.asarray(picture).std() > 5  # a blank sheet has 0


def test_a_style_of_the_program_around_us_does_not_matter(tmp_path: Path) -> None:
    import matplotlib

    before = export(llama_job(), "svg", tmp_path / "before.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        after = export(llama_job(), "svg", tmp_path / "after.svg").read_bytes()
    assert before == after


def test_the_size_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    make_capture_on_disk(tmp_path / "run", 30_000, layers=8)
    path = export(memlens.load(tmp_path / "run"), "svg", tmp_path / "picture.svg")
    assert path.stat().st_size < 1_000_000


def test_the_command(any_run: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my picture.svg"
    for expected in (0, 2):
        with pytest.raises(SystemExit) as exit_:
            main(["export", str(any_run.path), "--to", "svg", "--out", str(out)])
        assert exit_.value.code == expected
    told = capsys.readouterr()
    assert f"open with: a browser, with '{out}'\n" in told.out
    assert told.err.count("\n") == 1
    assert "never overwritten" in told.err
