"""What pytest calls: options, the marker, the fixture, and the summary.

A test with the marker runs recorded, or in a process of its own where CUDA is simulated. What was
measured travels with its report, so that workers of pytest-xdist need nothing else: the process that
the user started writes the baseline and the summary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest

from memlens_integrations.pytest_plugin.all_tests import CARRIED, AllTests

if TYPE_CHECKING:
    from memlens_integrations.pytest_plugin.budget import Budget
    from memlens_integrations.pytest_plugin.check import Checked
    from memlens_integrations.pytest_plugin.profile import MemoryProfile

__all__ = [
    "IS_CHILD",
    "memory_profile",
    "pytest_addoption",
    "pytest_configure",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
]

MARKER = "memory_budget"

IS_CHILD = pytest.StashKey[bool]()
"""Of a configuration: this process simulates one test of another one's."""
_BUDGET: pytest.StashKey[Budget | None] = pytest.StashKey()
_MEASURED: pytest.StashKey[list[Checked]] = pytest.StashKey()
_REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()
_REPLACED = ("setup", "runtest", "teardown")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; `pytest --help` shows them."""
    group = parser.getgroup("memlens", "memory budgets (memlens)")
    group.addoption(
        "--memory-report",
        action="store_true",
        help="list what the tests with a memory budget or profile needed",
    )
    group.addoption(
        "--memory-baseline",
        metavar="PATH",
        help="stored figures of tests with baseline=True [default: memory_baseline.json in rootdir]",
    )
    group.addoption(
        "--memory-update-baseline",
        action="store_true",
        help="store what these tests need now as their baseline",
    )
    group.addoption(
        "--memory-captures", metavar="DIR", help="keep the captures there, for `memlens report`"
    )
    parser.addini("memory_baseline", "path of the stored figures, relative to rootdir")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and what collects."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(peak='1.2GB', optimizer_state='400MB', ..., baseline=False, tolerance='1%', "
        "simulated=False, gpu='A100 80GB', device='cpu'): most memory that the test may need, by "
        "category; and whether it may need more than its stored baseline",
    )
    if not hasattr(config, "workerinput") and IS_CHILD not in config.stash:
        config.pluginmanager.register(AllTests(config), "memlens-all-tests")


# -- one test --------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read the test's marker; run it elsewhere if it is to be simulated."""
    item.stash[_MEASURED] = []
    item.stash[_BUDGET] = None
    marks = list(item.iter_markers(MARKER))
    if not marks:
        return
    with _in_one_line():
        from memlens_integrations.pytest_plugin.budget import read_budget

        budget = item.stash[_BUDGET] = read_budget(marks)
        if budget.gpu and not item.config.stash.get(IS_CHILD, False):
            from memlens_integrations.pytest_plugin.elsewhere import run_elsewhere

            item.stash[_REPORTS] = run_elsewhere(item, budget.gpu)
            # Its fixtures and its body have been run there, where there is a GPU; that it would be
            # skipped here does not matter.
            for name in _REPLACED:
                setattr(item, name, _nothing)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Record the body of the test, and check what it needed."""
    budget = item.stash[_BUDGET]
    if budget is None or _REPORTS in item.stash or _is_switched_off():
        return (yield)
    with _in_one_line():
        from memlens_integrations.pytest_plugin.check import check, settings_of
        from memlens_integrations.pytest_plugin.held import roots_of
        from memlens_integrations.pytest_plugin.record import Recording
    settings = settings_of(item.config)
    with settings.folder(item.nodeid) as folder:
        with _in_one_line():
            recording = Recording(folder, budget.device, settings.root)
            recording.start(roots_of(item))
        try:
            result = yield
        except BaseException as error:  # its own failure is what a test shows
            recording.stop(error)
            raise
        recording.stop()
        with _in_one_line():
            checked = check(item.nodeid, recording.measure(), budget, settings)
            if checked.failures and settings.captures is not None:
                checked.failures.append(f"All of it: memlens report {settings.shown(folder)}")
    _note(item, checked)
    if checked.failures:
        pytest.fail("\n\n".join(checked.failures), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report carry what was measured; of a simulated test, take the one made there."""
    report = yield
    elsewhere = item.stash.get(_REPORTS, None)
    if elsewhere is not None:
        # Here it can only fail when fixtures that it shares with others are torn down.
        if not (call.when == "teardown" and report.failed):
            report = elsewhere.get(call.when, report)
        if call.when == "teardown":
            del item.stash[_REPORTS]
            for name in _REPLACED:
                vars(item).pop(name, None)
    elif call.when == "call" and (measured := item.stash.get(_MEASURED, [])):
        setattr(report, CARRIED, [each.values for each in measured])
    return report


@pytest.fixture
def memory_profile(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., AbstractContextManager[MemoryProfile]]]:
    """Records parts of a test.

    ::

        def test_step(memory_profile):
            model = make_model()
            with memory_profile() as session:
                train(model)
            session.assert_below(peak="1.2GB", optimizer_state="400MB")
            session.compare_to_baseline(tolerance="1%")
            assert session.peak_bytes < 3 * size_of(model)
    """
    with _in_one_line("memory_profile"):
        from memlens_integrations.pytest_plugin.check import settings_of
        from memlens_integrations.pytest_plugin.profile import Profiles, local_variables

    item = request.node
    profiles = Profiles(item, settings_of(request.config), lambda checked: _note(item, checked))

    @contextmanager
    def record(name: str = "", device: str = "cpu") -> Iterator[MemoryProfile]:
        roots = local_variables(sys._getframe(2))
        with _in_one_line("memory_profile"):
            profile = profiles.start(name, device, roots)
        try:
            yield profile
        except BaseException as error:
            profile.stop(error)
            raise
        with _in_one_line("memory_profile"):
            profile.stop()

    yield record
    profiles.close()


def _note(item: pytest.Item, checked: Checked) -> None:
    item.stash[_MEASURED].append(checked)
    name = checked.values["test"].partition("#")[2]
    suffix = f"_{name}" if name else ""
    peak = checked.values["most_bytes"]["peak"]
    item.user_properties.append((f"memory_peak_bytes{suffix}", peak))


def _nothing() -> None:
    pass


@contextmanager
def _in_one_line(what: str = MARKER) -> Iterator[None]:
    """What cannot be done fails the test that asks for it, in a sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ImportError):
            text = f"needs memlens and torch, and they can not be imported here: {error}"
        elif any(each.__name__ == "MemlensError" for each in type(error).__mro__):
            text = str(error)
        else:
            raise
        raise pytest.fail.Exception(f"{what}: {text}", pytrace=False) from None


def _is_switched_off() -> bool:
    from memlens.options import is_disabled

    return is_disabled(os.environ)
