"""The closed form against published figures, and against its own definition."""

from __future__ import annotations

import pytest

from memlens.catalogue.closed_form import PRECISIONS, estimate, read_count
from memlens.catalogue.gpus import Gpu, find_gpu
from memlens.catalogue.measured import measured
from memlens.catalogue.table import CATALOGUE, find
from memlens.errors import UsageError

GB = 10**9
SEVEN = 7 * GB
"""Parameters."""


@pytest.mark.parametrize(("name", "state", "total"), [("adamw", 56, 112), ("sgd-momentum", 28, 84)])
def test_published_mixed_precision_figures_of_7b(name: str, state: int, total: int) -> None:
    found = estimate(find(name), SEVEN, "mixed")
    assert found.weight_bytes == 14 * GB
    assert found.master_weight_bytes == 28 * GB
    assert found.gradient_bytes == 14 * GB
    # AdamW counts its steps in a tensor of 4 bytes, which a matrix of 1024 x 1024 shares among its
    # million parameters.
    assert found.state_bytes == pytest.approx(state * GB, rel=1e-6)
    assert found.total_bytes == pytest.approx(total * GB, rel=1e-6)
    assert found.state_source == "measured"


def test_published_8_bit_figures_leave_the_scales_out() -> None:
    found = estimate(find("adamw8bit"), SEVEN, "mixed")
    # 14 GB for codes of one byte; a fp32 scale for each 256 makes it 1.6 % more, two tables 0.1 %.
    assert 14 * GB < found.state_bytes < 1.02 * 14 * GB
    assert found.total_bytes == pytest.approx(70 * GB, rel=0.01)


def test_published_adafactor_figures_do_not_hold() -> None:
    """10.5 GB are 1.5 bytes per parameter; factors of a matrix are far less, a first moment far more."""
    without = estimate(find("adafactor"), SEVEN, "mixed")
    assert without.state_bytes < 0.01 * 10.5 * GB
    assert without.total_bytes == pytest.approx(56 * GB, rel=0.001)
    momentum = estimate(find("adafactor-momentum"), SEVEN, "mixed")
    assert momentum.state_bytes > 2.6 * 10.5 * GB


@pytest.mark.parametrize(
    ("name", "cards"), [("adamw", 2), ("adamw8bit", 1), ("adafactor", 1), ("sgd-momentum", 2)]
)
def test_published_numbers_of_80_gb_cards(name: str, cards: int) -> None:
    assert estimate(find(name), SEVEN, "mixed").cards(find_gpu("80GB")) == cards


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(CATALOGUE))
def test_it_is_parameters_times_bytes(name: str, precision: str) -> None:
    row = CATALOGUE[name]
    count = 1 << 20
    found = estimate(row, count, precision)
    if row.precision != "job":
        precision = row.precision
    assert found.precision == precision
    dtype = "bf16" if precision == "bf16" else "fp32"
    figures = measured(name, dtype)
    assert figures is not None
    value = 4 if precision == "fp32" else 2
    assert found.weight_bytes == value * count
    assert found.gradient_bytes == (0 if row.always_in_backward else value * count)
    assert found.master_weight_bytes == (4 * count if precision == "mixed" else 0)
    # Of exactly as many parameters as were measured.
    assert found.state_bytes == figures.matrix_state * count
    assert found.total_bytes == (
        found.weight_bytes + found.master_weight_bytes + found.gradient_bytes + found.state_bytes
    )


def test_zero_cuts_one_more_part_at_each_stage() -> None:
    parts = []
    for stage in range(4):
        found = estimate(find("adamw-foreach"), SEVEN, "mixed", zero=stage, gpus=8 if stage else 1)
        parts.append(
            (
                found.weight_bytes,
                found.gradient_bytes,
                found.master_weight_bytes,
                # Without the 4 bytes of AdamW's counter.
                round(found.state_bytes / GB, 3),
            )
        )
        assert found.temporary_bytes == pytest.approx(28 * GB / (8 if stage else 1), rel=1e-4)
    whole, eighth = 14 * GB, 14 * GB // 8
    assert parts == [
        (whole, whole, 28 * GB, 56.0),
        (whole, whole, 28 * GB // 8, 7.0),
        (whole, eighth, 28 * GB // 8, 7.0),
        (eighth, eighth, 28 * GB // 8, 7.0),
    ]


def test_shares_are_rounded_up() -> None:
    found = estimate(find("sgd"), 10, "fp32", zero=3, gpus=3)
    assert (found.weight_bytes, found.gradient_bytes) == (14, 14)


def test_flat_partitions_are_vectors() -> None:
    """Nothing is factored in a vector; but tables do not grow with a partition."""
    adafactor = estimate(find("adafactor"), SEVEN, "mixed", zero=2, gpus=7).state_bytes
    # A counter of 4 bytes, which the vector of 8192 that was measured has as well.
    assert adafactor == pytest.approx(4 * GB, rel=2e-4)
    eight_bit = estimate(find("adamw8bit"), SEVEN, "mixed", zero=2, gpus=7).state_bytes
    assert 2 * GB < eight_bit < 2.04 * GB


def test_cards() -> None:
    gpu = Gpu("small", find_gpu("2GiB").total_bytes)
    usable = gpu.usable_bytes
    adamw, sgd = find("adamw"), find("sgd")
    assert estimate(sgd, usable // 8, "fp32").cards(gpu) == 1
    assert estimate(sgd, usable // 8 + 1, "fp32").cards(gpu) == 2
    # Weights are not cut below stage 3: when they alone are too much, no number helps.
    assert estimate(adamw, usable // 2, "fp32", zero=2).cards(gpu) is None
    for zero in (1, 2, 3):
        found = estimate(adamw, usable // 9, "fp32", zero=zero)
        cards = found.cards(gpu)
        assert cards is not None and cards > 1
        # The smallest that fits, also where that is a number in the hundreds.
        share = [
            estimate(adamw, usable // 9, "fp32", zero=zero, gpus=each).total_bytes
            for each in (cards - 1, cards)
        ]
        assert share[1] <= usable < share[0]
    many = estimate(adamw, usable * 40, "fp32", zero=3).cards(gpu)
    assert many == 40 * 16 + 1  # the counter's 4 bytes per million parameters take one more


def test_without_retained_gradients() -> None:
    found = estimate(find("adamw"), SEVEN, "bf16", no_retain_grad=True)
    assert found.gradient_bytes == 0 and found.no_retain_grad
    assert estimate(find("lomo"), SEVEN, "bf16").no_retain_grad


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("lion", {"no_retain_grad": True}, "lion cannot update within backward"),
        (
            "galore-adamw",
            {"zero": 1},
            "galore-adamw cannot run under ZeRO 1: GaLore needs matrices",
        ),
        ("muon", {"zero": 3}, "muon cannot run under ZeRO 3: flat partitions are vectors"),
        ("lomo", {"zero": 2}, "lomo cannot run under ZeRO 2: DeepSpeed reduces gradients"),
        ("adamw", {"zero": 2, "no_retain_grad": True}, "adamw cannot run under ZeRO 2: DeepSpeed"),
    ],
)
def test_refusals_say_who_and_why(name: str, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as error:
        estimate(find(name), SEVEN, "mixed", **arguments)  # type: ignore[arg-type]
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("70e9", 70 * GB), ("7B", SEVEN), (" 1.3 b ", 1_300_000_000), ("350M", 350_000_000),
        ("1,300,000", 1_300_000), ("1_000", 1000), ("2k", 2000), ("1T", 10**12), ("1", 1),
        ("7e+9", SEVEN),
    ],
)  # fmt: skip
def test_counts(text: str, count: int) -> None:
    assert read_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "seven", "-7B", "1.2.3", "1e999", "0", "0.1", "7 B x"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(UsageError):
        read_count(text)
