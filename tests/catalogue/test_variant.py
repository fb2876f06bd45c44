"""Variants as people write them."""

from __future__ import annotations

import pytest

from memlens.catalogue.variant import parse_variant
from memlens.errors import UsageError


def test_a_name_alone() -> None:
    variant = parse_variant(" adamw ")
    assert (variant.name, variant.options, variant.no_retain_grad) == ("adamw", {}, False)


def test_options_have_the_type_of_their_default() -> None:
    text = "galore-adamw8bit:rank=64,scale=1,proj_type=right,lr=1e-4,lr_scale=2+no-retain-grad"
    variant = parse_variant(text)
    assert variant.options == {
        "rank": 64, "scale": 1.0, "proj_type": "right", "lr": 1e-4, "lr_scale": 2.0,
    }  # fmt: skip
    assert isinstance(variant.options["scale"], float)
    assert variant.no_retain_grad
    assert parse_variant(variant.name) == variant


def test_without_retained_gradients_where_it_can() -> None:
    assert parse_variant("adamw", no_retain_grad=True).name == "adamw+no-retain-grad"
    assert parse_variant("lion", no_retain_grad=True).name == "lion"
    assert parse_variant("lomo", no_retain_grad=True).name == "lomo"


def test_as_is_is_no_row() -> None:
    assert parse_variant("as-is").row is None
    assert parse_variant("as-is", no_retain_grad=True).name == "as-is"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no optimizer ''"),
        ("adamw9bit", "did you mean adamw"),
        ("adamw:rank=3", "adamw has no option 'rank'; it has lr, lr_scale"),
        ("adamw:lr", "has no option 'lr'"),
        ("galore-adamw:rank=x", "galore-adamw:rank must be of kind int, not 'x'"),
        ("galore-adamw:rank=1.5", "must be of kind int"),
        ("galore-adamw:scale=", "must be of kind float, not ''"),
        ("adamw:lr=fast", "adamw:lr must be of kind float"),
        ("as-is:lr=1", "takes no options"),
        ("as-is+no-retain-grad", "takes no options"),
        ("lion+no-retain-grad", "lion cannot update within backward"),
        ("lomo+no-retain-grad", "lomo never retains gradients"),
    ],
)
def test_what_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_variant(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
