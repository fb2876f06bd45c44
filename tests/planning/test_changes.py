"""The table of changes: cheapest first, each with what it costs and who says so."""

from __future__ import annotations

import pytest

from memlens.catalogue.table import CATALOGUE
from memlens.planning.changes import Axis, Change, Price, changes_for

EVERY = [
    *changes_for(["AdamW"], ["--batch", "8x256"], built_in=True),
    *changes_for(["Lion"], [], built_in=False),
    *changes_for(["Adan"], [], built_in=False),
    *changes_for(["RMSprop"], [], built_in=False),
]


def names(*optimizers: str, words: str = "--batch 8x256", built_in: bool = True) -> list[str]:
    return [each.name for each in changes_for(optimizers, words.split(), built_in=built_in)]


@pytest.mark.parametrize("change", EVERY, ids=lambda each: each.name)
def test_every_change_says_what_it_costs_and_who_says_so(change: Change) -> None:
    assert change.cost.text
    assert change.cost.source
    assert change.what
    assert change.touches or change.axis is Axis.ALLOCATOR
    assert not change.optimizer or change.optimizer in CATALOGUE
    assert 0 < change.share <= 1


def test_the_cheapest_come_first() -> None:
    prices = [each.cost.price for each in changes_for(["AdamW"], (), built_in=True)]
    assert prices == sorted(prices)
    assert set(prices) == set(Price)


def test_changes_depend_on_the_job() -> None:
    adamw = names("AdamW")
    assert adamw[:3] == ["expandable-segments", "adamw-fused", "adamw-r"]
    assert {"adamw-loop", "no-retain-grad", "accumulate-2", "accumulate-8"} <= set(adamw)
    assert "accumulate-3" not in adamw
    assert "lion-r" in names("Lion")
    assert "adamw-r" not in names("Lion")
    assert "adan-r" in names("Adan")
    # What the job's class is, is not known: nothing is said about it, but there are others.
    assert "no-retain-grad" not in names("MyOwn")
    assert "adamw8bit" in names("MyOwn")
    assert names() == [
        "expandable-segments",
        *[n for n in names() if n.startswith(("acc", "check"))],
    ]


def test_what_the_job_does_already_is_not_proposed() -> None:
    assert "checkpointing" not in names("AdamW", words="--batch 8x256 --checkpointing")
    assert not [n for n in names("AdamW", words="--batch 1x256") if n.startswith("accumulate")]


def test_of_a_script_some_changes_are_left_to_its_author() -> None:
    by_hand = [
        each.name for each in changes_for(["AdamW"], (), built_in=False) if not each.simulated
    ]
    assert by_hand == ["accumulate", "checkpointing"]
