"""Which storages a tensor holds. The only place that asks a tensor for its address."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "first_tensor",
    "inner_tensors",
    "is_quantised",
    "live_tensors",
    "storages",
    "tensors_in",
]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_MAX_DEPTH = 6


def storages(tensor: torch.Tensor, device_type: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield (device, start address, bytes of the tensor, offset) of each storage that a tensor holds.

    Only of devices of one type; the device is its number among those. The offset is that of the tensor
    within the storage, in bytes.

    Views and tied weights give the address of the storage they share. Wrapper subclasses (quantised
    states, DTensor) have no storage of their own and give those of the tensors inside.
    """
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        for _, inner in inner_tensors(tensor):
            yield from storages(inner, device_type)
        return
    if tensor.device.type != device_type:
        return
    if tensor.layout is not torch.strided:
        for part in _sparse_parts(tensor):
            yield from storages(part, device_type)
        return
    try:
        address = tensor.data_ptr()
    except (RuntimeError, ValueError):  # no storage: fake, functional or (ValueError) lazy
        return
    if address:
        offset = int(tensor.storage_offset()) * tensor.element_size()
        yield tensor.device.index or 0, address - offset, tensor.nbytes, offset


def inner_tensors(tensor: Any) -> list[tuple[str, torch.Tensor]]:
    """Names and values of the tensors that a wrapper subclass is made of.

    What it names may be something else: DTensor's mesh, since torch 2.13.
    """
    parts = [(name, getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0]]
    return [(name, part) for name, part in parts if isinstance(part, torch.Tensor)]


def is_quantised(tensor: torch.Tensor) -> bool:
    """Whether a tensor is kept in fewer bits than its own dtype has.

    That is so for a wrapper subclass whose largest inner tensor, the codes, has narrower elements
    than the wrapper (torchao's quantised weights). DTensor, nested and sparse ones keep the dtype.
    """
    if type(tensor) in _PLAIN or not is_traceable_wrapper_subclass(tensor):
        return False
    largest = max(_innermost(tensor), key=lambda inner: inner.nbytes, default=tensor)
    return largest.element_size() < tensor.element_size()


def _innermost(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    if type(tensor) in _PLAIN or not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for _, inner in inner_tensors(tensor):
        yield from _innermost(inner)


def _sparse_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    for getter in ("_indices", "_values", "crow_indices", "col_indices", "values"):
        try:
            yield getattr(tensor, getter)()
        except (AttributeError, RuntimeError):
            continue


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor of a module's result: itself, or within tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return None
    for item in value:
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def tensors_in(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) for every tensor in nested containers and plain objects.

    Objects are looked into because optimizers hide state in them (GaLore's projector holds its
    matrix as an attribute). Modules and parameters' own `.grad` are not followed.
    """
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if depth >= _MAX_DEPTH or value is None or isinstance(value, (str, bytes, int, float, type)):
        return
    if isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from tensors_in(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for index, item in enumerate(list(value)):
            yield from tensors_in(item, f"{path}.{index}" if path else str(index), depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        yield from tensors_in(vars(value), path, depth + 1)


def live_tensors(objects: Iterable[Any], device_type: str) -> Iterator[torch.Tensor]:
    """Yield those of `objects` (from `gc.get_objects()`) that are tensors on a device."""
    for candidate in objects:
        # isinstance would ask proxies for their class and run code of theirs.
        if issubclass(type(candidate), torch.Tensor) and candidate.device.type == device_type:
            yield candidate
