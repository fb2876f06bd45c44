"""The marker and the fixture, in one run of pytest over a file of tests as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.pytest_runs import STRICT, Ran, run_pytest

PROJECT = """
import pytest
import torch
from torch import nn

LEFT = []


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, foreach=False)
    model(torch.ones(10, model.in_features)).sum().backward()
    optimizer.step()


@pytest.fixture
def model():
    return nn.Linear(100, 100, bias=False)


@pytest.mark.memory_budget(weight=40_000, gradient="40 kB", optimizer_state=40_000.0, peak="1MB")
def test_fits(model):
    step(model)


@pytest.mark.memory_budget(gradient=39_999, optimization="39kB", peak="1GB")
def test_exceeds(model):
    step(model)


@pytest.mark.memory_budget(peak=10)
def test_fails_by_itself(model):
    step(model)
    assert 1 == 2


@pytest.mark.memory_budget()
def test_leaves_something(model):
    LEFT.append(torch.ones(1_000_000))
    step(model)


@pytest.mark.memory_budget()
def test_again(model):
    step(model)


def test_profile(memory_profile, record_property):
    model = nn.Linear(100, 100, bias=False)
    other = torch.ones(1000)
    with memory_profile() as profile:
        step(model)
    assert profile.most_bytes["weight"] == 40_000
    assert profile.reserved_bytes is None
    record_property("peak_less_other", profile.peak_bytes - other.nbytes)
    record_property("events", profile.capture.ranks[0].events > 0)
    profile.assert_below(peak="1MB", gradient=40_000)
    with memory_profile(name="second") as second:
        torch.ones(250)
    with pytest.raises(Exception, match="no such argument: weights; did you mean weight?"):
        second.assert_below(weights=1)
    second.assert_below(temporary=1000)
    second.assert_below(temporary=999)


@pytest.mark.memory_budget()
def test_profile_and_marker(memory_profile):
    with memory_profile():
        pass


@pytest.mark.memory_budget(peak="1.2 parsecs")
def test_no_size():
    pass


@pytest.mark.memory_budget(peak=-1)
def test_negative_size():
    pass


@pytest.mark.memory_budget("1GB")
def test_by_position():
    pass


@pytest.mark.memory_budget(optimiser_state="1GB")
def test_no_such_category():
    pass


@pytest.mark.memory_budget(reserved="1GB")
def test_reserved_of_the_cpu():
    pass


@pytest.mark.memory_budget(tolerance="1%")
def test_tolerance_of_nothing():
    pass


@pytest.mark.memory_budget(baseline=True, tolerance="much%")
def test_no_tolerance():
    pass


@pytest.mark.memory_budget(gpu="A1000000")
def test_no_such_gpu():
    pass


@pytest.mark.memory_budget(device="cpu", simulated=True)
def test_two_devices():
    pass


@pytest.mark.memory_budget(device="tpu")
def test_no_such_device():
    pass


@pytest.mark.memory_budget(device="cuda")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    pass


def test_torch_is_as_it_was():
    assert "memlens" not in repr(nn.Module.__call__) + repr(torch.optim.Optimizer.step)
    assert not nn.modules.module._global_forward_pre_hooks
"""

STEP_BYTES = 3 * 40_000
"""Weight, gradient and momentum; the batch is gone when the optimizer makes that."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "test_memory.py").write_text(PROJECT)
    return folder


@pytest.fixture(scope="module")
def ran(project: Path) -> Ran:
    """One run of all of them."""
    return run_pytest(project, "--memory-report")


def peak_bytes(ran: Ran, test: str) -> int:
    return int(ran.tests[test].properties["memory_peak_bytes"])


def line_of(text: str) -> int:
    return PROJECT.splitlines().index(text) + 1


def test_what_fits_passes(ran: Ran) -> None:
    assert ran.tests["test_fits"].outcome == "passed"


def test_the_peak_is_exact_and_every_time_the_same(ran: Ran) -> None:
    for test in ("test_fits", "test_exceeds", "test_again"):
        assert peak_bytes(ran, test) == STEP_BYTES


def test_what_other_tests_leave_behind_does_not_count(ran: Ran) -> None:
    assert peak_bytes(ran, "test_leaves_something") == STEP_BYTES + 4_000_000
    assert peak_bytes(ran, "test_again") == STEP_BYTES


def test_a_budget_that_does_not_suffice(ran: Ran) -> None:
    backward = line_of("    model(torch.ones(10, model.in_features)).sum().backward()")
    update = line_of("    optimizer.step()")
    assert ran.failure("test_exceeds").splitlines() == [
        "memory budget exceeded: gradient came to 39.06 KiB (40,000 B), 1 B more than the budget of "
        "39.06 KiB (39,999 B)",
        "",
        "                   needed     budget     over",
        "  gradient      39.06 KiB  39.06 KiB     +1 B",
        "  optimization  39.06 KiB  38.09 KiB  +1000 B",
        "",
        "When gradient was at its highest:",
        f"  39.06 KiB  gradient  weight @ step (test_memory.py:{backward})",
        "",
        "When optimization was at its highest:",
        f"  39.06 KiB  optimizer_state  momentum_buffer of weight @ step (test_memory.py:{update})",
    ]


def test_a_failing_test_shows_its_own_failure(ran: Ran) -> None:
    assert "assert 1 == 2" in ran.failure("test_fails_by_itself")
    assert "memory budget" not in ran.failure("test_fails_by_itself")


def test_the_fixture(ran: Ran) -> None:
    properties, other_bytes = ran.tests["test_profile"].properties, 4000
    # What the test made before counts, as its local variables hold it.
    assert int(properties["peak_less_other"]) == STEP_BYTES
    assert properties["events"] == "True"
    # The model has its gradient still; the momentum went with the optimizer.
    assert properties["memory_peak_bytes_second"] == str(2 * 40_000 + other_bytes + 1000)
    text = ran.failure("test_profile")
    assert ">       second.assert_below(temporary=999)" in text.splitlines()
    assert "temporary came to 1000 B, 1 B more than the budget of 999 B" in text


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("test_no_size", "memory_budget: not a size: '1.2 parsecs'"),
        ("test_negative_size", "peak must be a size such as '1.2GB', or whole bytes, not -1"),
        ("test_by_position", "takes arguments by name, not '1GB': memory_budget(peak='1.2GB')"),
        (
            "test_no_such_category",
            "no such argument: optimiser_state; did you mean optimizer_state?",
        ),
        ("test_reserved_of_the_cpu", "reserves nothing; limit reserved with simulated=True"),
        ("test_tolerance_of_nothing", "add baseline=True"),
        ("test_no_tolerance", "tolerance 'much%' is no share"),
        ("test_no_such_gpu", "no card 'A1000000'"),
        ("test_two_devices", "not both"),
        ("test_no_such_device", "device must be cpu, cuda or auto, not 'tpu'"),
        ("test_no_gpu", "cannot record CUDA memory: there is no CUDA device"),
        ("test_profile_and_marker", "records the whole body of this test"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(ran: Ran, test: str, says: str) -> None:
    text = ran.failure(test)
    assert len(text.strip().splitlines()) == 1
    assert says in text


def test_torch_is_as_it_was(ran: Ran) -> None:
    assert ran.tests["test_torch_is_as_it_was"].outcome == "passed"


def test_the_report_lists_tests_by_their_peak(ran: Ran) -> None:
    _, _, table = ran.text.partition("memory (memlens)")
    rows = [line.split() for line in table.splitlines() if "test_memory.py::" in line]
    assert rows[0][:3] == ["3.93", "MiB", "-"]
    assert "test_memory.py::test_leaves_something" in rows[0]
    fits = next(row for row in rows if "test_memory.py::test_fits" in row)
    assert fits[:4] == ["117.19", "KiB", "976.56", "KiB"]
    assert "optimizer_state 39.06 KiB" in " ".join(fits)


def test_no_capture_is_left(ran: Ran, project: Path) -> None:
    assert ran.code == pytest.ExitCode.TESTS_FAILED
    left = {path.name for path in project.iterdir()} - {"__pycache__"}
    assert left == {"junit.xml", "pytest.ini", "test_memory.py"}
