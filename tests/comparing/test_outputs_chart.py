"""The chart of a comparison, measured in its own SVG."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import matplotlib
import pytest
from PIL import Image
from tests.support.fake_comparison import COMPARISONS, SIX, failed, make_comparison

from memlens.comparing.capacity import Capacity
from memlens.comparing.outputs.chart import LIMIT, chart_bytes, draw_chart
from memlens.comparing.results import Comparison
from memlens.errors import UsageError
from memlens.palette import series_of
from memlens.report.text import plain
from memlens.units import format_bytes

MIB = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"
CARD = Capacity("RTX 4090", 24 * 10**9)


def svg_of(
    comparison: Comparison, *, rollup: bool = True, capacities: tuple[Capacity, ...] = ()
) -> ElementTree.Element:
    content = chart_bytes(comparison, "svg", rollup=rollup, capacities=capacities)
    return ElementTree.fromstring(content)


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in svg.iter(f"{SVG}text")]


def corners(path: ElementTree.Element) -> list[tuple[float, float]]:
    numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def bars(svg: ElementTree.Element) -> list[dict[str, float]]:
    """Width of every segment by colour, one mapping per bar, topmost first."""
    found: dict[float, dict[str, float]] = defaultdict(dict)
    for path in svg.iter(f"{SVG}path"):
        # Bars are cut off at the axes; backgrounds of labels and the legend are not.
        if "clip-path" not in path.attrib or "fill: #" not in path.get("style", ""):
            continue
        fill = re.findall(r"fill: (#\w+)", path.get("style", ""))[0]
        across = [x for x, _ in corners(path)]
        down = [y for _, y in corners(path)]
        found[sum(down) / len(down)][fill.upper()] = max(across) - min(across)
    return [found[y] for y in sorted(found)]


def dashes(svg: ElementTree.Element) -> list[float]:
    """Where dashed lines stand."""
    return [
        corners(path)[0][0]
        for path in svg.iter(f"{SVG}path")
        if LIMIT.lower() in path.get("style", "") and "dasharray" in path.get("style", "")
    ]


@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("name", COMPARISONS)
def test_every_variant_is_there(name: str, rollup: bool) -> None:
    comparison = COMPARISONS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = svg_of(comparison, rollup=rollup, capacities=(CARD,))
    letters = re.sub(r"\s", "", "".join(texts(svg)))
    for result in comparison.results:
        assert re.sub(r"\s", "", plain(result.name)) in letters
        if result.peak is None:
            reason = plain(f"{result.status.value}: {result.reason}")
            assert re.sub(r"\s", "", reason) in letters
        else:
            assert format_bytes(result.peak.allocated_bytes) in texts(svg)


@pytest.mark.parametrize("rollup", [False, True])
@pytest.mark.parametrize("name", ["ok only", "six", "every category", "huge", "twenty", "unicode"])
def test_segments_are_as_long_as_their_bytes(name: str, rollup: bool) -> None:
    comparison = COMPARISONS[name]
    peaks = [result.peak for result in comparison.results if result.peak is not None]
    drawn = bars(svg_of(comparison, rollup=rollup))
    assert len(drawn) == len(peaks)
    longest = max(sum(bar.values()) for bar in drawn)
    scale = longest / max(peak.allocated_bytes for peak in peaks)
    for bar, peak in zip(drawn, peaks, strict=True):
        expected = {
            series.colour.upper(): series.amount(peak.categories) * scale
            for series in series_of(rollup)
            if series.amount(peak.categories)
        }
        # Coordinates in an SVG have six decimals.
        assert bar == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("capacities", [(), (CARD,), (Capacity("card", 150 * MIB),)])
def test_the_same_comparison_is_the_same_file(
    capacities: tuple[Capacity, ...], tmp_path: Path
) -> None:
    contents = []
    for number in range(2):
        path = tmp_path / f"{number}.svg"
        draw_chart(SIX, path, capacities=capacities)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0]


def test_the_style_of_the_program_around_us_does_not_matter() -> None:
    before = chart_bytes(SIX, "svg", rollup=True)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "figure.dpi": 20}):
        assert chart_bytes(SIX, "svg", rollup=True) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_a_capacity_is_a_line_where_it_belongs() -> None:
    limits = (Capacity("twice", 265 * MIB), Capacity("card", 132 * MIB))
    svg = svg_of(COMPARISONS["alone"], capacities=limits)
    (bar,) = bars(svg)
    left = min(x for path in svg.iter(f"{SVG}path") if (x := corner_of_bar(path)) is not None)
    scale = sum(bar.values()) / COMPARISONS["alone"].results[0].peak.allocated_bytes  # type: ignore[union-attr]
    assert sorted(dashes(svg)) == pytest.approx(
        [left + 132 * MIB * scale, left + 265 * MIB * scale], abs=1e-3
    )
    assert {"twice (265.00 MiB)", "card (132.00 MiB)"} <= set(texts(svg))


def corner_of_bar(path: ElementTree.Element) -> float | None:
    if "clip-path" in path.attrib and "fill: #0072b2" in path.get("style", ""):
        return min(x for x, _ in corners(path))
    return None


def test_a_capacity_far_outside_is_named_and_leaves_the_bars_alone() -> None:
    comparison = COMPARISONS["alone"]
    svg = svg_of(comparison, capacities=(CARD,))
    assert not dashes(svg)
    assert "RTX 4090 (22.35 GiB) →" in texts(svg)
    assert bars(svg)[0] == pytest.approx(bars(svg_of(comparison))[0])


def test_names_of_capacities_do_not_overlap() -> None:
    limits = tuple(Capacity(f"card {size}", size * MIB) for size in (60, 140, 141, 142))
    svg = svg_of(SIX, capacities=limits)
    heights = {
        words: text.attrib["y"]
        for text in svg.iter(f"{SVG}text")
        if (words := "".join(text.itertext())).startswith("card ")
    }
    assert len({heights[f"card {size} ({size}.00 MiB)"] for size in (140, 141, 142)}) == 3
    assert heights["card 60 (60.00 MiB)"] == heights["card 140 (140.00 MiB)"]


def test_the_axis_says_its_unit() -> None:
    assert "allocated, MiB" in texts(svg_of(SIX))
    assert "allocated, GiB" in texts(svg_of(COMPARISONS["twenty"]))
    assert "allocated, TiB" in texts(svg_of(COMPARISONS["huge"]))
    assert "allocated, B" in texts(svg_of(COMPARISONS["tiny"]))
    assert not any("allocated" in text for text in texts(svg_of(COMPARISONS["all failed"])))


def test_the_legend_names_what_occurs() -> None:
    assert {"Weight", "Optimization", "Weight Gradient", "Activation", "Others"} <= set(
        texts(svg_of(SIX))
    )
    shown = texts(svg_of(SIX, rollup=False))
    assert "optimizer state" in shown
    assert "communication" not in shown


def test_the_baseline_and_the_way_from_it() -> None:
    shown = texts(svg_of(SIX))
    assert shown.count("baseline") == 1
    assert {"-15.4 %", "-22.8 %", "-17.2 %"} <= set(shown)
    assert "baseline" not in texts(svg_of(COMPARISONS["alone"]))


def test_labels_are_within_their_segments() -> None:
    """26.5 MiB are told in every bar, 1 MiB of gradients has no room for a number."""
    shown = texts(svg_of(SIX))
    assert shown.count("26.5") == 4
    assert "1.0" not in shown


def test_a_long_reason_ends_visibly() -> None:
    shown = texts(svg_of(make_comparison(failed("a", "word " * 100))))
    assert any(text.endswith(" …") for text in shown)


@pytest.mark.parametrize("name", ["six", "twenty", "all failed", "unicode"])
def test_a_png(name: str, tmp_path: Path) -> None:
    path = tmp_path / "chart.PNG"
    draw_chart(COMPARISONS[name], path, capacities=(CARD,))
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1760
        assert image.height > 60 * len(COMPARISONS[name].results)


def test_colours_of_a_png_are_the_palettes() -> None:
    image = Image.open(io.BytesIO(chart_bytes(COMPARISONS["ok only"], "png", rollup=True)))
    colours = image.convert("RGB").getcolors(1 << 24) or []
    counted = {colour: number for number, colour in colours}
    for series in series_of(rollup=True):
        rgb = (*bytes.fromhex(series.colour[1:]),)
        assert counted.get(rgb, 0) > 100, series.label


@pytest.mark.parametrize("name", ["chart.pdf", "chart"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"name it \.svg or \.png"):
        draw_chart(SIX, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_pyplot_is_left_alone() -> None:
    code = (
        "import sys; from memlens.comparing.outputs import chart;"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout.strip() == b"False"


def test_without_matplotlib() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from memlens.errors import MissingDependencyError\n"
        "try:\n    import memlens.comparing.outputs.chart\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout.decode().strip() == (
        'matplotlib is needed to draw the chart; install it with: pip install "memlens[chart]"'
    )
