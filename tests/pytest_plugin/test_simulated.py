"""Tests on a CUDA device that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.pytest_runs import STRICT, Ran, run_pytest

PROJECT = """
import os

import pytest
import torch
from torch import nn

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def shared(width):
    yield nn.Linear(width, 1000, bias=False)
    print("shared is torn down")


@pytest.mark.memory_budget(gpu="RTX 4090", weight=4_000_256, reserved="42MiB", baseline=True)
@needs_gpu
@pytest.mark.parametrize("name", ["a::b [c]"])
def test_fits(name, shared, record_property):
    record_property("gpu", torch.cuda.get_device_name())
    model = shared.to("cuda")
    model(torch.ones(1, 1000, device="cuda")).sum().backward()


@pytest.mark.memory_budget(simulated=True, reserved="1MB")
def test_exceeds(shared):
    shared.to("cuda")


@pytest.mark.memory_budget(simulated=True)
def test_fails(shared):
    print("on", shared.weight.device)
    assert shared is None


@pytest.mark.memory_budget(simulated=True)
@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    assert torch.cuda.is_available() is False


@pytest.mark.memory_budget(simulated=True)
def test_skips():
    pytest.skip("by itself")


@pytest.mark.memory_budget(simulated=True)
def test_dies():
    os._exit(7)


@pytest.mark.memory_budget(simulated=True)
def test_asks_for_data():
    torch.nonzero(torch.rand(10, device="cuda"))


def test_here(shared):
    # The simulated ones have left nothing in this process.
    assert os.environ.get("MEMLENS_PLAN") is None
    assert torch.nn.Linear(1, 1, device="cpu").weight.device.type == "cpu"
"""
CONFTEST = """
import pytest


def pytest_addoption(parser):
    parser.addoption("--width", type=int)


@pytest.fixture(scope="session")
def width(request):
    return request.config.getoption("--width")
"""


def new_project(folder: Path) -> Path:
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_memory.py").write_text(PROJECT)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def ran(project: Path) -> Ran:
    return run_pytest(project, "--width=1000", "--memory-update-baseline", "-rA", "-n", "2")


def test_a_test_that_needs_a_gpu_runs_without_one(tmp_path: Path) -> None:
    run = run_pytest(
        new_project(tmp_path), "--width=1000", "--memory-update-baseline", "-k", "fits"
    )
    assert run.code == 0, run.text
    test = run.tests["test_fits[a::b [c]]"]
    assert test.properties["gpu"] == "RTX 4090"
    entry = json.loads((tmp_path / "memory_baseline.json").read_text())["tests"]
    (entry,) = entry.values()
    assert entry["source"] == "simulated RTX 4090"
    # CUDA's allocator rounds to 512 bytes. It takes 20 MiB for blocks of up to 10: one for the weight
    # and its gradient, one for two workspaces of cuBLAS; and 2 MiB for small ones.
    assert entry["most_bytes"]["weight"] == entry["most_bytes"]["gradient"] == 4_000_256
    assert entry["most_bytes"]["workspace"] == 2 * 8_519_680
    assert entry["most_bytes"]["reserved"] == (20 + 20 + 2) << 20


@pytest.mark.slow
def test_outcomes_are_those_of_the_simulation(ran: Ran) -> None:
    assert ran.tests["test_fits[a::b [c]]"].outcome == "passed"
    assert "reserved came to" in ran.failure("test_exceeds")
    assert "assert Linear(" in ran.failure("test_fails")
    assert ran.tests["test_expected_to_fail"].outcome == "skipped"
    assert ran.tests["test_skips"].message.endswith("by itself")
    assert ran.tests["test_here"].outcome == "passed"


@pytest.mark.slow
def test_output_belongs_to_the_test(ran: Ran) -> None:
    assert "on cpu" in ran.text
    assert "shared is torn down" in ran.text


@pytest.mark.slow
def test_a_process_that_dies_is_an_error(ran: Ran) -> None:
    assert ran.failure("test_dies").startswith(
        "memory_budget: the process of the simulated test has ended with code 7"
    )


@pytest.mark.slow
def test_what_cannot_be_simulated_fails(ran: Ran) -> None:
    assert "SimulationError" in ran.failure("test_asks_for_data")
