"""What the fixture `memory_profile` gives: recordings of parts of a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

from memlens.capture import Capture
from memlens.errors import UsageError
from memlens.options import is_disabled
from memlens_integrations.pytest_plugin.budget import PEAK, RESERVED, Tolerance, read_limits
from memlens_integrations.pytest_plugin.check import (
    Checked,
    Settings,
    check_baseline,
    check_limits,
)
from memlens_integrations.pytest_plugin.held import roots_of
from memlens_integrations.pytest_plugin.measure import Measurement
from memlens_integrations.pytest_plugin.record import Recording

__all__ = ["MemoryProfile", "Profiles", "local_variables"]


class MemoryProfile:
    """One recorded piece of a test; its figures are there once the `with` block is left."""

    def __init__(self, test: str, recording: Recording, profiles: Profiles) -> None:
        self._test = test
        self._recording = recording
        self._profiles = profiles
        self._measured: tuple[Measurement, Checked] | None = None

    def stop(self, error: BaseException | None = None) -> None:
        """The `with` block is left.

        Raises:
            MemlensError: its figures can not be told.
        """
        self._recording.stop(error)
        if error is None and not is_disabled(os.environ):
            measurement = self._recording.measure()
            checked = Checked.of(self._test, measurement, {})
            self._measured = measurement, checked
            self._profiles.note(checked)

    def _stopped(self) -> tuple[Measurement, Checked]:
        if self._measured is None:
            raise UsageError(
                "there are no figures: the `with` block is not left yet, an error came out of it, "
                "or MEMLENS_DISABLE is set"
            )
        return self._measured

    @property
    def capture(self) -> Capture:
        """All that was recorded, as `memlens.load` has it. Gone when the test has ended."""
        return self._recording.capture

    @property
    def peak_bytes(self) -> int:
        """The most that was allocated at one moment."""
        return self.most_bytes[PEAK]

    @property
    def reserved_bytes(self) -> int | None:
        """The most that the allocator had taken from the device; None: it takes nothing in advance."""
        return self.most_bytes.get(RESERVED)

    @property
    def most_bytes(self) -> Mapping[str, int]:
        """By category (`optimizer_state`, ...): the most that it came to at any moment."""
        return self._stopped()[0].most_bytes

    def assert_below(self, **limits: str | int) -> None:
        """Fail the test if it needed more than `peak="1.2GB"`, `optimizer_state="400MB"`, and so on.

        Raises:
            UsageError: there is no such category, or a limit is no size.
        """
        __tracebackhide__ = True
        measurement, checked = self._stopped()
        sizes = read_limits(limits)
        checked.values["limits_bytes"].update(sizes)
        _tell(checked, lambda: check_limits(checked, measurement, sizes))

    def compare_to_baseline(self, tolerance: str | int = 0) -> None:
        """Fail the test if it needed more than is stored.

        Args:
            tolerance: by how much it may be more: `"1%"` of the baseline's peak, or a size.

        Raises:
            UsageError: the baseline can not be read, or is of another source.
        """
        __tracebackhide__ = True
        measurement, checked = self._stopped()
        allowed, settings = Tolerance.parse(tolerance), self._profiles.settings
        source = measurement.source
        _tell(checked, lambda: check_baseline(checked, measurement, source, allowed, settings))


class Profiles:
    """Makes the profiles of one test; see `hooks.memory_profile`.

    Args:
        item: the test.
        settings: of this run of pytest.
        note: called with each that has stopped.
    """

    def __init__(self, item: Any, settings: Settings, note: Callable[[Checked], None]) -> None:
        self._item = item
        self.settings = settings
        self.note = note
        self._names: set[str] = set()
        self._folders = ExitStack()

    def start(self, name: str, device: str, roots: Iterable[Any]) -> MemoryProfile:
        """Begin to record.

        Args:
            name: tells several profiles of one test apart.
            device: what to record: cpu, cuda, or auto.
            roots: what counts of what is there already, beside what the test was given.

        Raises:
            UsageError: the test has such a profile already, or is recorded as a whole.
            SessionActiveError: something else records.
        """
        if self._item.get_closest_marker("memory_budget"):
            raise UsageError(
                "the marker memory_budget records the whole body of this test; use one or the other"
            )
        if name in self._names:
            raise UsageError(
                f"this test has a profile of the name {name!r} already; "
                "write memory_profile(name='second')"
            )
        test = f"{self._item.nodeid}#{name}" if name else self._item.nodeid
        folder = self._folders.enter_context(self.settings.folder(test))
        recording = Recording(folder, device, self.settings.root)
        recording.start([*roots_of(self._item), *roots])
        self._names.add(name)
        return MemoryProfile(test, recording, self)

    def close(self) -> None:
        """Remove what is not to be kept."""
        self._folders.close()


def local_variables(frame: FrameType | None) -> list[Any]:
    """Those of a test, and of what it has called."""
    found: list[Any] = []
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in ("_pytest", "pluggy"):
            break
        found += frame.f_locals.values()
        frame = frame.f_back
    return found


def _tell(checked: Checked, check: Callable[[], None]) -> None:
    __tracebackhide__ = True
    known = len(checked.failures)
    check()
    if len(checked.failures) > known:
        pytest.fail("\n\n".join(checked.failures[known:]))
