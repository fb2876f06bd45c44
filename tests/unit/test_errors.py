"""The error tree: exit codes that scripts rely on, and texts that name the way out."""

from __future__ import annotations

import inspect
import re

import pytest

from memlens import errors
from memlens.errors import MemlensError, MissingDependencyError

EXIT_CODES = {
    "MemlensError": 1,
    "UsageError": 2,
    "SessionActiveError": 2,
    "OutputExistsError": 2,
    "CaptureError": 2,
    "MissingDependencyError": 2,
    "SourceError": 1,
    "SimulationError": 1,
}


def _classes() -> dict[str, type[MemlensError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, MemlensError)
    }


def test_exit_codes_are_frozen() -> None:
    assert {name: each.exit_code for name, each in _classes().items()} == EXIT_CODES


def test_every_error_is_public_and_has_one_base() -> None:
    assert sorted(_classes()) == sorted(errors.__all__)
    assert all(issubclass(each, MemlensError) for each in _classes().values())


def test_the_drawn_tree_is_the_real_one() -> None:
    """Name, and parent by indentation, as drawn at the top of the file."""
    drawn: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+(?:Error))\b", line)
        if match:
            while path and path[-1][0] >= len(match[1]):
                path.pop()
            drawn[match[2]] = path[-1][1] if path else "Exception"
            path.append((len(match[1]), match[2]))
    assert drawn == {name: each.__mro__[1].__name__ for name, each in _classes().items()}


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    error = MissingDependencyError("tensorboard", "write TensorBoard files", "tensorboard")
    assert str(error) == (
        "tensorboard is needed to write TensorBoard files; "
        'install it with: pip install "memlens[tensorboard]"'
    )


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
def test_each_says_when_it_is_raised(name: str) -> None:
    assert _classes()[name].__doc__
