"""The example of a project with memory budgets holds what it stores, and notices what grows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.pytest_runs import run_pytest

from memlens.units import format_bytes

EXAMPLE = Path(__file__).parents[2] / "examples" / "memory_budgets"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, tmp_path / "project"))


@pytest.mark.slow
def test_it_passes_and_its_baseline_is_as_it_would_be_made(project: Path) -> None:
    held = run_pytest(project)
    assert held.code == 0, held.text
    made = run_pytest(project, "--memory-update-baseline")
    assert "3 measured, 0 changed" in made.text
    name = "memory_baseline.json"
    assert (project / name).read_bytes() == (EXAMPLE / name).read_bytes()


@pytest.mark.slow
def test_another_optimizer_is_noticed(project: Path) -> None:
    path = project / "test_memory.py"
    path.write_text(path.read_text().replace("lr=1e-3", "lr=1e-3, weight_decay=0.1, amsgrad=True"))
    run = run_pytest(project, "-k", "AdamW")
    text = run.failure("test_step[AdamW]")
    # The budget does not suffice, and it is told what grew: a third state of the model's size.
    assert "\nmemory grew: peak came to " in text
    model_bytes = 4 * (2 * 1000 * 128 + 4 * (2 * 4 * 128 * 128 + (4 + 1 + 2) * 128))
    assert f"{format_bytes(model_bytes, signed=True)}  <-" in text
    assert "max_exp_avg_sq of layers.*.mlp.*.weight @ train (test_memory.py:" in text


@pytest.mark.slow
def test_it_runs_within_another_recording_only_with_a_word(project: Path) -> None:
    run = run_pytest(project, "-k", "SGD", environment={"MEMLENS_DISABLE": "1"})
    assert run.code == 0
    assert "memory_peak_bytes" not in run.tests["test_step[SGD]"].properties
