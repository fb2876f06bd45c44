"""Workspaces of cuBLASLt, of whose size there are many tensors: only the first of a thread is one."""

from __future__ import annotations

import pytest
from tests.core.test_attribution import CATEGORIES, STEP, segmented
from tests.support.streams import Event, Mark, paired, tags

from memlens.attribution.rules import attribute
from memlens.attribution.workspaces import Workspaces
from memlens.events import Category

MIB = 2**20
NEXT: list[Mark] = [(40, "module_enter", 0), (44, "module_exit", 0, 1)]
KNOWN = Workspaces((), MIB)


def categories(rows: list[Event], known: Workspaces = KNOWN) -> list[Category]:
    found = attribute(paired(rows), segmented([*STEP, *NEXT]), tags([]), known)
    return [CATEGORIES[each] for each in found.category]


def kept(*times: int, size: int = MIB) -> list[Event]:
    """Blocks that are never freed."""
    return [(time, "alloc", 0x7F00_0000_0000 + time * MIB, size) for time in times]


@pytest.mark.parametrize(
    ("time", "otherwise"), [(13, Category.ACTIVATION), (17, Category.ACTIVATION)]
)
def test_the_first_of_the_jobs_thread(time: int, otherwise: Category) -> None:
    assert categories(kept(time, 18)) == [Category.WORKSPACE, Category.ACTIVATION]
    assert categories(kept(time, 18), Workspaces()) == [otherwise, Category.ACTIVATION]
    assert categories(kept(time, size=MIB + 1)) == [otherwise]


def test_the_first_of_the_engines_thread() -> None:
    found = categories(kept(13, 21, 23))
    assert found == [Category.WORKSPACE, Category.WORKSPACE, Category.GRADIENT]


def test_what_is_freed_later_is_none() -> None:
    address = 0x7F00_0000_0000
    assert categories([(13, "alloc", address, MIB), (42, "free", address, MIB)]) == [
        Category.ACTIVATION
    ]


def test_the_last_step_may_not_have_freed_it_yet() -> None:
    assert categories(kept(41)) == [Category.ACTIVATION]


def test_what_was_there_before_may_be_anything() -> None:
    assert categories([(0, "census", 0x7F00_0000_0000, MIB)]) == [Category.UNKNOWN]


def test_what_is_declared_wins() -> None:
    rows = kept(13)
    told = tags([(14, rows[0][2], Category.WEIGHT)])
    found = attribute(paired(rows), segmented([*STEP, *NEXT]), told, KNOWN)
    assert CATEGORIES[found.category[0]] is Category.WEIGHT
