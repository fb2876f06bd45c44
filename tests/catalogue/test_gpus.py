"""Cards by name."""

from __future__ import annotations

import pytest

from memlens.catalogue.gpus import CONTEXT_BYTES, GPUS, find_gpu
from memlens.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("nvidia geforce rtx-4090", "RTX 4090"),
        ("a100-80gb", "A100 80GB"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("A10", "A10"),
        ("amd instinct mi300x", "MI300X"),
        ("mi250x", "MI250X GCD"),
        ("4060", "RTX 4060 Ti 16GB"),
    ],
)
def test_a_card_however_it_is_written(text: str, name: str) -> None:
    assert find_gpu(text) is GPUS[name]


@pytest.mark.parametrize("name", list(GPUS))
def test_each_is_found_by_its_own_name(name: str) -> None:
    gpu = find_gpu(name)
    assert gpu is GPUS[name]
    assert gpu.usable_bytes == gpu.total_bytes - CONTEXT_BYTES
    assert gpu.source


@pytest.mark.parametrize(
    ("name", "seen_gib"),
    [
        ("A100 80GB", 79.25), ("H100 80GB", 79.14), ("H200", 139.80), ("B200", 178.35),
        ("RTX 5090", 31.36), ("RTX 4090", 23.64),
    ],
)  # fmt: skip
def test_no_more_is_usable_than_torch_sees(name: str, seen_gib: float) -> None:
    """Torch says so in its out-of-memory errors; a CUDA context is then still to be taken from it."""
    room = seen_gib - GPUS[name].usable_bytes / (1 << 30)
    # A context takes 0.3 to 0.6 GiB; no card loses more than 1 GiB, which is what we take off.
    assert 0.1 < room < 0.7


@pytest.mark.parametrize(
    ("text", "total_bytes"),
    # There is one card with 40GB in its name, and two with 80GB: a size is a size.
    [("24GB", 24 * 10**9), ("40GB", 40 * 10**9), ("80 GB", 80 * 10**9), ("1.5TiB", 3 << 39)],
)
def test_a_size_is_a_card(text: str, total_bytes: int) -> None:
    gpu = find_gpu(text)
    assert (gpu.name, gpu.total_bytes) == (text, total_bytes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a100", "did you mean A100 40GB or A100 80GB?"),
        ("v100", "did you mean V100 16GB or V100 32GB?"),
        ("rtx 4091", "did you mean RTX 4090"),
        ("abacus", "known are T4, V100 16GB"),
        ("", "known are T4"),
        ("100MB", "a card of 100MB is too small"),
        ("0GB", "too small"),
    ],
)
def test_what_is_no_card(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        find_gpu(text)
    assert words in str(error.value)
