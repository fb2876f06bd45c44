"""Tensors among the arguments and results of an operator: single, and in lists and tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from memlens.simulation.backend import FakeTensor

__all__ = ["data_less", "map_tensors", "tensors"]


def data_less(value: Any) -> Iterator[FakeTensor]:
    """The tensors without data among an operator's results or arguments."""
    if isinstance(value, FakeTensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from data_less(item)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors among them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def map_tensors(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples, with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(change, item) for item in value)
    return value
