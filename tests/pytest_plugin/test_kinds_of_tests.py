"""Classes, unittest, threads, expected failures; and profiles that go wrong."""

from __future__ import annotations

import pytest
from tests.support.pytest_runs import STRICT, Ran, run_pytest

pytestmark = pytest.mark.slow

PROJECT = """
import threading
import unittest

import pytest
import torch
from torch import nn

SHARED = nn.Linear(50, 20, bias=False)
UNUSED = torch.ones(100_000)


@pytest.mark.memory_budget(peak=10)
@pytest.mark.xfail(strict=True)
def test_known_to_exceed():
    torch.ones(100)


@pytest.mark.memory_budget()
def test_uses_a_global():
    SHARED(torch.ones(1, 50))


@pytest.mark.memory_budget(peak="1MB")
class TestOfClass:
    @classmethod
    def setup_class(cls):
        cls.unused = torch.ones(5000)
        cls.used = torch.ones(100)

    def setup_method(self):
        self.own = torch.ones(10)

    def test_method(self):
        return self.helper()

    def helper(self):
        torch.ones(1000).clone()
        self.used.sum()

    @pytest.mark.memory_budget(peak=100)
    def test_closest_marker(self):
        torch.ones(1000)


@pytest.mark.memory_budget(peak=1000)
class TestOfUnittest(unittest.TestCase):
    def setUp(self):
        self.x = torch.ones(100)

    def test_unittest_fits(self):
        self.x.sum()

    def test_unittest_exceeds(self):
        torch.ones(300)

    def test_unittest_fails(self):
        torch.ones(300)
        self.assertEqual(1, 2)


@pytest.mark.memory_budget()
def test_threads():
    def work():
        kept.append(torch.ones(1000))

    kept = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_profile_twice(memory_profile):
    with memory_profile():
        pass
    with memory_profile():
        pass


def test_profile_of_an_error(memory_profile):
    with memory_profile():
        raise ValueError("own")


def test_profile_in_a_profile(memory_profile):
    with memory_profile(), memory_profile(name="second"):
        pass


def test_profile_that_is_open(memory_profile):
    with memory_profile() as profile:
        profile.peak_bytes
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text(STRICT)
    (folder / "test_memory.py").write_text(PROJECT)
    return run_pytest(folder)


def peak_bytes(ran: Ran, test: str) -> int:
    return int(ran.tests[test].properties["memory_peak_bytes"])


def test_what_a_test_uses_counts(ran: Ran) -> None:
    assert peak_bytes(ran, "test_uses_a_global") == 4 * (50 * 20 + 50 + 20)
    # An attribute of the class that a helper uses, one of its own, two temporaries; not the unused.
    assert peak_bytes(ran, "test_method") == 4 * (100 + 10 + 1000 + 1000)


def test_a_test_may_be_expected_to_exceed(ran: Ran) -> None:
    assert ran.tests["test_known_to_exceed"].outcome == "skipped"
    assert peak_bytes(ran, "test_known_to_exceed") == 400


def test_markers_of_class_and_function_add_up(ran: Ran) -> None:
    assert ran.tests["test_method"].outcome == "passed"
    assert "more than the budget of 100 B" in ran.failure("test_closest_marker")


def test_tests_of_unittest(ran: Ran) -> None:
    assert ran.tests["test_unittest_fits"].outcome == "passed"
    assert "peak came to 1.56 KiB (1,600 B)" in ran.failure("test_unittest_exceeds")
    assert "AssertionError: 1 != 2" in ran.failure("test_unittest_fails")


def test_all_threads_count(ran: Ran) -> None:
    assert peak_bytes(ran, "test_threads") == 4 * 4000


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("test_profile_twice", "has a profile of the name '' already"),
        ("test_profile_of_an_error", "ValueError: own"),
        ("test_profile_in_a_profile", "already recording in this process"),
        ("test_profile_that_is_open", "the `with` block is not left yet"),
    ],
)
def test_profiles_that_go_wrong(ran: Ran, test: str, says: str) -> None:
    assert says in ran.failure(test)
