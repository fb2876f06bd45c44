"""Colours that mean one thing each, to everybody."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from memlens.answers import rollup
from memlens.events import ROLLUP, Category
from memlens.palette import CATEGORY_SERIES, ROLLUP_SERIES, Series, series_of

Vector = npt.NDArray[np.float64]

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}

# Distance in OKLab below which two colours are easily taken for each other; 0.02 is just noticeable
# side by side, and a legend is not side by side.
APART = 0.08


def _linear(colour: str) -> Vector:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear: Vector) -> Vector:
    cones = np.cbrt(
        np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        )
        @ np.clip(linear, 0, 1)
    )
    lab: Vector = (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ cones
    )
    return lab


@pytest.mark.parametrize("vision", sorted(VISION))
@pytest.mark.parametrize("series", [CATEGORY_SERIES, ROLLUP_SERIES], ids=["categories", "rollup"])
def test_any_two_colours_can_be_told_apart(vision: str, series: tuple[Series, ...]) -> None:
    seen = {each.key: _oklab(np.array(VISION[vision]) @ _linear(each.colour)) for each in series}
    close = {
        (one, other): round(float(np.linalg.norm(seen[one] - seen[other])), 3)
        for one, other in itertools.combinations(seen, 2)
        if np.linalg.norm(seen[one] - seen[other]) < APART
    }
    assert close == {}


@pytest.mark.parametrize("background", [0.0, 1.0], ids=["black", "white"])
def test_no_colour_vanishes_on_a_dark_or_light_background(background: float) -> None:
    for each in CATEGORY_SERIES:
        luminance = float(_linear(each.colour) @ [0.2126, 0.7152, 0.0722])
        lighter, darker = max(luminance, background), min(luminance, background)
        assert (lighter + 0.05) / (darker + 0.05) > 1.2, each.key


def test_every_category_has_one_place_in_each_set() -> None:
    for series in (CATEGORY_SERIES, ROLLUP_SERIES):
        members = [member for each in series for member in each.members]
        assert sorted(members) == sorted(Category)


def test_letters_and_colours_are_unique() -> None:
    for series in (CATEGORY_SERIES, ROLLUP_SERIES):
        assert len({each.letter for each in series}) == len(series)
        assert len({each.colour for each in series}) == len(series)


def test_the_five_names_add_up_as_the_library_does() -> None:
    categories = {category: 10**at for at, category in enumerate(Category)}
    assert {each.key: each.amount(categories) for each in series_of(True)} == rollup(categories)
    assert {each.key for each in series_of(True)} == set(ROLLUP)
    assert sum(each.amount(categories) for each in series_of(False)) == sum(categories.values())
