"""A job in another precision: its model is cast, what goes in is cast, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from memlens.variants.parameters import roots_of

__all__ = ["cast_models"]


def cast_models(parameters: Iterable[torch.Tensor], dtype: torch.dtype) -> None:
    """Cast the models that hold these parameters, in place: the tensors stay the same objects.

    Floating-point arguments of a model's call are cast as well, and floating-point results back to
    what came in or fp32, so that the job's loss sees the precision that it expects (as Accelerate
    and DeepSpeed do).
    """
    parameters = list(parameters)
    for root in roots_of(parameters):
        root.to(dtype)
        root.register_forward_pre_hook(_cast_inputs(dtype), with_kwargs=True)
        root.register_forward_hook(_cast_outputs)
    for parameter in parameters:  # those that no module holds
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def _cast_inputs(dtype: torch.dtype) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return _cast(args, dtype), _cast(kwargs, dtype)

    return hook


def _cast_outputs(module: torch.nn.Module, args: Any, result: Any) -> Any:
    # Only what a loss is made of: a scalar loss keeps its own precision, and big hidden states, which
    # nobody computes a loss from, stay as they are.
    return _cast(result, torch.float32) if isinstance(result, torch.Tensor) else result


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)({key: _cast(item, dtype) for key, item in value.items()})
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    return value
