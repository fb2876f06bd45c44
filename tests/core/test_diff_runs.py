"""Two real jobs compared: to the byte, which module, category and line they differ in.

The jobs are those of one script, kept in two folders; in the second one, the lines have moved.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from tests.support.jobs import write_script

import memlens
from memlens.analysis.change import Change
from memlens.analysis.diff import Diff, diff
from memlens.analysis.sites import SiteChange
from memlens.capture import RankCapture
from memlens.events import Category, Phase

SCRIPT = """\
import sys

import torch


def main(foreach, layers):
    model = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=foreach)
    for _ in range(2):
        model(torch.ones(4, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


main(sys.argv[1] == "foreach", int(sys.argv[2]))
"""
MOVED = "# Two lines, put above everything else,\n# so that all others move.\n" + SCRIPT

LAYERS = 3
WEIGHT, BIAS = 4 * 32 * 32, 4 * 32
LAYER = WEIGHT + BIAS
STATE = 2 * LAYER + 2 * 4
"""Of a layer: two moments, and for weight and bias a count of steps in float32."""
SCALAR = 8 + 4
"""A number in an operation is a float64 tensor and one of the operand's type."""
LOOP = BIAS + 2 * WEIGHT + SCALAR
"""The for-loop's temporaries at their highest: the denominator of the bias before is still there,
and of a weight the root and the quotient of root and number."""
ALL_AT_ONCE = LAYERS * LAYER + SCALAR
"""The roots of all second moments, each then divided in place."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RankCapture]:
    """The peak of each of these jobs is within `optimizer.step()`."""
    folder = tmp_path_factory.mktemp("runs")
    here = write_script(folder / "here" / "job.py", SCRIPT)
    there = write_script(folder / "there" / "job.py", MOVED)
    jobs = {
        "loop": (here, "loop", "3"),
        "foreach": (there, "foreach", "3"),
        "deeper": (there, "foreach", "4"),
        "no stacks": (there, "foreach", "3"),
    }

    def record(name: str) -> RankCapture:
        script, *words = jobs[name]
        with (
            pytest.MonkeyPatch.context() as patch,
            memlens.profile(out=folder / name, stacks=name != "no stacks") as session,
        ):
            patch.setattr(sys, "argv", [str(script), *words])
            runpy.run_path(str(script), run_name="__main__")
        return session.capture.rank(0)

    return {name: record(name) for name in jobs}


def changed(found: Diff) -> dict[Category, int]:
    """Differences by category, without the zeros."""
    return {
        category: change.difference_bytes
        for category, change in found.categories.items()
        if change.difference_bytes
    }


def where(site: SiteChange) -> tuple[str, str, int, str, str, int]:
    """Folder, function and line in A and in B."""
    a, b = site.a_frame, site.b_frame
    assert a is not None
    assert b is not None
    return (
        Path(a.file).parent.name, a.function, a.line,
        Path(b.file).parent.name, b.function, b.line,
    )  # fmt: skip


def line_of(text: str, script: str) -> int:
    """Number of the line that holds a text."""
    return 1 + [text in line for line in script.splitlines()].index(True)


def test_what_foreach_costs_is_at_the_line_that_steps(runs: dict[str, RankCapture]) -> None:
    found = diff(runs["loop"], runs["foreach"])

    assert found.a_peak.phase is found.b_peak.phase is Phase.OPTIMIZER
    more = ALL_AT_ONCE - LOOP
    assert found.size.difference_bytes == found.peak.difference_bytes == more
    assert changed(found) == {Category.OPTIMIZER_TEMPORARY: more}
    assert found.categories[Category.OPTIMIZER_TEMPORARY] == Change(LOOP, ALL_AT_ONCE)

    module, *same = found.modules
    assert module.module == ""
    assert module.size.difference_bytes == more
    assert module.categories[Category.OPTIMIZER_TEMPORARY] == Change(LOOP, ALL_AT_ONCE)
    assert {each.module for each in same} == {"0", "1", "2"}
    assert all(each.size == Change(each.size.a_bytes, each.size.a_bytes) for each in same)

    site, *others = found.sites
    assert site.category is Category.OPTIMIZER_TEMPORARY
    assert site.size == Change(LOOP, ALL_AT_ONCE)
    # The root of each of six second moments, and the number in its two forms.
    assert (site.a_blocks, site.b_blocks) == (5, 8)
    line = line_of("optimizer.step()", SCRIPT)
    assert where(site) == ("here", "main", line, "there", "main", line + 2)
    # Every other line is found again two lines below, and holds the same.
    for other in others:
        assert other.size.difference_bytes == 0
        assert other.a_blocks == other.b_blocks
        assert where(other)[5] == where(other)[2] + 2


def test_one_more_layer_is_named(runs: dict[str, RankCapture]) -> None:
    found = diff(runs["foreach"], runs["deeper"])

    assert changed(found) == {
        Category.WEIGHT: LAYER,
        Category.GRADIENT: LAYER,
        Category.OPTIMIZER_STATE: STATE,
        Category.OPTIMIZER_TEMPORARY: LAYER,
    }
    assert found.size.difference_bytes == 3 * LAYER + STATE
    assert [(each.module, each.size.difference_bytes) for each in found.modules[:2]] == [
        ("3", 2 * LAYER + STATE),
        ("", LAYER),
    ]
    assert all(each.size.difference_bytes == 0 for each in found.modules[2:])
    assert (found.modules[0].a_class_name, found.modules[0].b_class_name) == ("", "Linear")
    lines = {
        "torch.nn.Linear": (Category.WEIGHT, LAYER, 2),
        "backward()": (Category.GRADIENT, LAYER, 2),
        "optimizer.step()": (Category.OPTIMIZER_STATE, STATE, 2 * 3),
    }
    for text, (category, size, blocks) in lines.items():
        (site,) = (each for each in found.sites if each.category is category)
        assert site.a_frame == site.b_frame
        assert where(site)[2] == line_of(text, MOVED)
        assert (site.size.difference_bytes, site.b_blocks - site.a_blocks) == (size, blocks)


def test_without_stacks_tensors_are_the_sites(runs: dict[str, RankCapture]) -> None:
    found = diff(runs["loop"], runs["no stacks"])

    assert all(site.a_frame is site.b_frame is None for site in found.sites)
    states = {
        site.name: site.size
        for site in found.sites
        if site.category is Category.OPTIMIZER_STATE and "2.weight" in site.name
    }
    assert states == {
        "exp_avg of 2.weight": Change(WEIGHT, WEIGHT),
        "exp_avg_sq of 2.weight": Change(WEIGHT, WEIGHT),
        "step of 2.weight": Change(4, 4),
    }
    assert [site.category for site in found.sites if site.size.difference_bytes] == [
        Category.OPTIMIZER_TEMPORARY
    ]


@pytest.mark.parametrize("step", [None, 0, 1])
@pytest.mark.parametrize("name", ["loop", "foreach", "deeper", "no stacks"])
def test_a_run_does_not_differ_from_itself(
    name: str, step: int | None, runs: dict[str, RankCapture]
) -> None:
    found = diff(runs[name], runs[name], step=step)
    assert found.identical
    assert not changed(found)
    assert found.size.a_bytes == found.size.b_bytes > 0


def test_everything_adds_up_in_every_step(runs: dict[str, RankCapture]) -> None:
    a, b = runs["loop"], runs["deeper"]
    for step in (0, 1):
        found = diff(a, b, step=step)
        for parts in (
            list(found.categories.values()),
            [each.size for each in found.modules],
            [each.size for each in found.sites],
        ):
            assert sum(part.a_bytes for part in parts) == a.steps()[step].peak_bytes
            assert sum(part.b_bytes for part in parts) == b.steps()[step].peak_bytes
        assert found.steps[step].size == found.size
