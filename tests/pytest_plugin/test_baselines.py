"""Stored figures: made, held to, and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.pytest_runs import STRICT, Ran, run_pytest

import memlens
from memlens.errors import UsageError
from memlens_integrations.pytest_plugin.baseline import Entry, compare, read_entry
from memlens_integrations.pytest_plugin.budget import EXACTLY

PROJECT = """
import os

import pytest
import torch
from torch import nn

GROWN = bool(os.environ.get("GROWN"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(10, 10, bias=False)

    def forward(self, x):
        return self.inner(x)


class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def train(model, momentum):
    optimizer = torch.optim.SGD(model.parameters(), momentum=momentum, foreach=False)
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()


@pytest.mark.memory_budget(baseline=True)
@pytest.mark.parametrize("layers", [2, 3])
def test_grows(layers):
    train(Model(layers), momentum=0.9 if GROWN else 0)


@pytest.mark.memory_budget(baseline=True)
def test_shrinks():
    torch.ones(500 if GROWN else 1000)


@pytest.mark.memory_budget(baseline=True, tolerance="10%")
def test_is_tolerated():
    torch.ones(1100 if GROWN else 1000)


@pytest.mark.memory_budget(baseline=True, tolerance=399)
def test_is_not_tolerated():
    torch.ones(1100 if GROWN else 1000)


@pytest.mark.memory_budget(baseline=True)
def test_overlaps():
    kept = torch.ones(1000)
    if not GROWN:
        del kept
    torch.ones(1000)


@pytest.mark.memory_budget(baseline=True, peak=10)
def test_fails():
    torch.ones(1000)


def test_profile(memory_profile):
    with memory_profile(name="a") as profile:
        torch.ones(200 if GROWN else 100)
    profile.compare_to_baseline(tolerance="50%")
"""
STORED = (
    "test_memory.py::test_grows[2]",
    "test_memory.py::test_grows[3]",
    "test_memory.py::test_is_not_tolerated",
    "test_memory.py::test_is_tolerated",
    "test_memory.py::test_overlaps",
    "test_memory.py::test_profile#a",
    "test_memory.py::test_shrinks",
)
UPDATE = "--memory-update-baseline"


def new_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "test_memory.py").write_text(PROJECT)
    return folder


def stored(project: Path, name: str = "memory_baseline.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / name).read_text())["tests"]
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_project(tmp_path_factory.mktemp("runs") / "project")


@pytest.fixture(scope="module")
def made(project: Path) -> Ran:
    """A run that makes the baseline."""
    return run_pytest(project, UPDATE)


@pytest.fixture(scope="module")
def first(project: Path, made: Ran) -> str:
    """The file as the first run has made it."""
    return (project / "memory_baseline.json").read_text()


@pytest.fixture(scope="module")
def grown(project: Path, first: str) -> Ran:
    """A later one, when tests need something else; one of them has no entry."""
    path = project / "memory_baseline.json"
    found = json.loads(path.read_text())
    del found["tests"]["test_memory.py::test_grows[3]"]
    path.write_text(json.dumps(found))
    return run_pytest(project, "--memory-report", environment={"GROWN": "1"})


def test_a_baseline_is_made_of_the_tests_that_pass(made: Ran, first: str) -> None:
    assert made.tests["test_fails"].outcome == "failed"
    assert sorted(json.loads(first)["tests"]) == list(STORED)
    assert "memory baseline: 7 measured, 7 changed, in memory_baseline.json" in made.text


def test_an_entry_sums_to_the_byte(first: str) -> None:
    entry = json.loads(first)["tests"]["test_memory.py::test_grows[2]"]
    assert entry["most_bytes"]["weight"] == entry["most_bytes"]["gradient"] == 800
    assert entry["sites"]["weight"] == {
        "layers.*.inner.weight @ Block.__init__ (test_memory.py)": [800, 800]
    }
    at_peak = [pair[0] for sites in entry["sites"].values() for pair in sites.values()]
    assert sum(at_peak) == entry["peak_bytes"]
    for category, sites in entry["sites"].items():
        assert sum(pair[1] for pair in sites.values()) == entry["most_bytes"][category]


def test_the_file_reads_well_in_a_diff(first: str) -> None:
    lines = first.splitlines()
    assert first.endswith("}\n")
    assert '     "layers.*.inner.weight @ Block.__init__ (test_memory.py)": [800, 800]' in lines
    assert max(map(len, lines)) < 100
    keys = [line.strip() for line in lines if line.startswith('  "')]
    assert keys == sorted(keys)


def test_what_grew_is_told_by_category_name_and_line(grown: Ran) -> None:
    text = grown.failure("test_grows[2]").splitlines()
    line = PROJECT.splitlines().index("    optimizer.step()") + 1
    assert text[0].startswith("memory grew: peak came to 2.34 KiB (2,400 B), ")
    state = [each.split() for each in text if each.startswith("  optimizer_state")]
    assert state == [["optimizer_state", "-", "800", "B", "+800", "B", "<-"]]
    row = "- 800 B +800 B optimizer_state momentum_buffer of layers.*.inner.weight @ train "
    assert f"{row}(test_memory.py:{line})" in [" ".join(each.split()) for each in text]
    assert text[-1] == (
        "If this is as it should be: pytest 'test_memory.py::test_grows[2]' --memory-update-baseline"
    )


def test_a_test_without_an_entry_fails_with_the_way_out(grown: Ran) -> None:
    assert grown.failure("test_grows[3]") == (
        "no memory baseline of this test in memory_baseline.json; make it with: "
        "pytest 'test_memory.py::test_grows[3]' --memory-update-baseline"
    )


def test_less_is_no_failure(grown: Ran) -> None:
    assert grown.tests["test_shrinks"].outcome == "passed"
    assert "memory baseline: 1 below it; --memory-update-baseline keeps the gain" in grown.text
    row = next(line for line in grown.text.splitlines() if "::test_shrinks" in line)
    assert row.split()[:7] == ["1.95", "KiB", "-", "3.91", "KiB", "-1.95", "KiB"]


def test_a_tolerance_is_kept_to_the_byte(grown: Ran) -> None:
    assert grown.tests["test_is_tolerated"].outcome == "passed"  # 400 more than 4000 B
    text = grown.failure("test_is_not_tolerated")
    assert text.startswith("memory grew: peak came to 4.30 KiB (4,400 B), 400 B more than its")
    assert "(399 B are tolerated)" in text
    assert "100 B more" not in grown.failure("test_profile")
    assert "(200 B are tolerated)" in grown.failure("test_profile")


def test_a_peak_grows_though_no_block_does(grown: Ran) -> None:
    text = grown.failure("test_overlaps")
    assert "peak came to 7.81 KiB (8,000 B), 3.91 KiB (4,000 B) more" in text


@pytest.mark.slow
def test_an_update_takes_what_is_new_and_keeps_the_rest(project: Path, grown: Ran) -> None:
    (project / "test_gone.py").write_text("")
    before = stored(project)
    before["test_gone.py::test_x"] = before["test_memory.py::test_shrinks"]
    before["test_removed.py::test_x"] = before["test_memory.py::test_shrinks"]
    (project / "memory_baseline.json").write_text(
        json.dumps({"format_version": 1, "tests": before})
    )
    run = run_pytest(project, UPDATE, "-k", "shrinks or grows", environment={"GROWN": "1"})
    after = stored(project)
    assert run.code == 0
    assert sorted(after) == sorted([*STORED, "test_gone.py::test_x"])
    assert after["test_memory.py::test_shrinks"]["peak_bytes"] == 2000
    assert after["test_memory.py::test_overlaps"] == before["test_memory.py::test_overlaps"]


@pytest.mark.slow
def test_workers_make_the_same_file(tmp_path: Path, made: Ran, first: str) -> None:
    """Also in another process, another order and another place: to the byte."""
    project = new_project(tmp_path / "elsewhere")
    run = run_pytest(project, UPDATE, "-n", "2", "--memory-baseline=kept/memory.json")
    assert "7 measured, 7 changed, in kept/memory.json" in run.text
    assert (project / "kept" / "memory.json").read_text() == first
    again = run_pytest(project, "--memory-baseline=kept/memory.json", "-k", "not fails")
    assert again.code == 0, again.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<<<<<<< HEAD\n{}", "can not be read as a memory baseline"),
        ("[]", "can not be read as a memory baseline"),
        ('{"format_version": 9, "tests": {}}', "baseline of format 9, and this memlens reads 1"),
        (
            '{"format_version": 1, "tests": {"t": {"peak_bytes": 1}}}',
            "holds no valid baseline of t",
        ),
        (
            '{"format_version": 1, "tests": {"t": {"source": "cpu", "torch": "2", "threads": 1,'
            ' "peak_bytes": "1", "most_bytes": {}}}}',
            "holds no valid baseline of t (a size is not a whole number)",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "memory_baseline.json"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_entry(path, "t")
    assert says in str(error.value)
    assert "--memory-update-baseline" in str(error.value)
    assert "\n" not in str(error.value)


def test_figures_of_another_allocator_are_not_compared() -> None:
    cpu, cuda = (Entry(name, "2.13.0", 1, peak_bytes=1, most_bytes={}) for name in ("cpu", "cuda"))
    with pytest.raises(UsageError, match="was recorded from cuda, and this from cpu"):
        compare(cuda, cpu, EXACTLY)


@pytest.mark.slow
def test_an_update_does_not_destroy_what_it_cannot_read(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    (project / "memory_baseline.json").write_text("<<<<<<< HEAD\n{}")
    assert "can not be read" in run_pytest(project, "-k", "shrinks").failure("test_shrinks")
    run = run_pytest(project, UPDATE, "-k", "shrinks")
    assert run.code == pytest.ExitCode.TESTS_FAILED
    assert "the memory baseline was not written" in run.text
    assert (project / "memory_baseline.json").read_text() == "<<<<<<< HEAD\n{}"


@pytest.mark.slow
def test_captures_can_be_kept(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    run = run_pytest(project, UPDATE, "-k", "fails or profile", "--memory-captures=runs")
    names = sorted(path.name for path in (project / "runs").iterdir())
    assert names == ["test_memory.py-test_fails", "test_memory.py-test_profile-a"]
    assert run.failure("test_fails").endswith(f"All of it: memlens report runs/{names[0]}")
    assert memlens.load(project / "runs" / names[0]).ranks[0].peak().allocated_bytes >= 4000
