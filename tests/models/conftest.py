"""What the tests of the built-in models share."""

from __future__ import annotations

import pytest
import torch

from memlens.models.build import count_parameters


@pytest.fixture(autouse=True, scope="module")
def transformers_is_loaded() -> None:
    """Loading its models changes sys.meta_path (through packages it imports); do so before a test."""
    count_parameters("gpt2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small models on several threads fight for cores."""
    torch.set_num_threads(1)
