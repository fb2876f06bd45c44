"""Operators that are not just run: what reads values, moves between host and device, resizes, indexes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from memlens.simulation.backend import FakeTensor, on_device, simulated_device
from memlens.simulation.in_place import OPERATORS
from memlens.simulation.kernels.temporaries import temporaries
from memlens.simulation.schema import schema_of
from memlens.simulation.values import MOST_BYTES, stand_in

if TYPE_CHECKING:
    from memlens.simulation.dispatch import Simulation

__all__ = ["SPECIAL", "to_host"]

_ATEN = torch.ops.aten


def _local_scalar_dense(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return sim.read(args[0])


def _equal(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    values = [sim.values.of(each) if isinstance(each, FakeTensor) else each for each in args[:2]]
    first, second = values
    if first is not None and second is not None:
        return torch.equal(first, second)
    sim.notes.add("a comparison of two tensors is a stand-in")
    return False


def _copy(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    target, origin = args[0], args[1]
    value = sim.values.of(origin) if isinstance(origin, FakeTensor) else origin
    if isinstance(target, FakeTensor):
        result = sim.without_data(func, schema_of(func), types, args, kwargs)
        # What is written over as a whole is known, if what comes is.
        is_whole = target.nbytes == target.untyped_storage().nbytes()
        if value is not None and is_whole and value.nbytes <= MOST_BYTES:
            sim.values.set(target, value.expand(target.shape).to(target.dtype, copy=True))
        return result
    # A small host tensor is real: what comes into it from the device is a stand-in.
    if value is not None:
        return func(target, value, *args[2:], **kwargs)
    sim.notes.add("a tensor that is copied from the device holds stand-ins")
    return target.fill_(stand_in(target.dtype))


def _to_copy(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    device = kwargs.get("device")
    if device is None or device.type != "cpu" or not on_device(args[0]):
        return NotImplemented
    return to_host(sim, args[0], kwargs.get("dtype") or args[0].dtype)


def to_host(sim: Simulation, origin: Any, dtype: torch.dtype) -> Any:
    """A small tensor of the device on the host: its values, or stand-ins."""
    if origin.numel() * dtype.itemsize > MOST_BYTES:
        return NotImplemented  # host tensors of this size have no data
    value = sim.values.of(origin)
    if value is not None:
        return value.to(dtype, copy=True)
    sim.notes.add("a tensor that is copied from the device holds stand-ins")
    return torch.full(tuple(origin.shape), stand_in(dtype), dtype=dtype)


def _device_put(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    device = simulated_device(args[1])
    return sim.run(_ATEN._to_copy.default, types, (args[0],), {"device": device}, is_fake=True)


def _update_found_inf(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return None  # gradients are finite, so the step is taken


def _in_place_fused(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return None if not func._schema.returns else NotImplemented


def _resize(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    result = sim.data_less.__torch_dispatch__(func, types, args, kwargs)
    if on_device(args[0]):
        sim.memory.resize(args[0].untyped_storage())
    return result


def _index(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """A boolean index is made one of numbers first, as CUDA's kernel does; if its values are known."""
    indices = args[1]
    if not any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices):
        return NotImplemented
    numbers: list[Any] = []
    for each in indices:
        if each is None or each.dtype not in (torch.bool, torch.uint8):
            numbers.append(each)
            continue
        found = sim.run(_ATEN.nonzero.default, types, (each,), {}, is_fake=True)
        numbers += [
            sim.run(_ATEN.select.int, types, (found, 1, place), {}, is_fake=True)
            for place in range(each.dim())
        ]
    return sim.run(func, types, (args[0], numbers, *args[2:]), kwargs, is_fake=True)


def _in_place(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Torch takes a new tensor only because a mode is there."""
    if kwargs or not sim.in_place.is_meant(func, args):
        return NotImplemented
    used = temporaries(func, args, kwargs, args[0])
    if used:
        sim.memory.pass_through(used)
    sim.values.lose(args[0])
    return args[0]


SPECIAL: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((name.partition("::")[2] for name in OPERATORS), _in_place),
    "_local_scalar_dense": _local_scalar_dense,
    "equal": _equal,
    "copy_": _copy,
    "_to_copy": _to_copy,
    "device_put": _device_put,
    "_amp_foreach_non_finite_check_and_unscale_": _update_found_inf,
    "_fused_adam_": _in_place_fused,
    "_fused_adamw_": _in_place_fused,
    "_fused_sgd_": _in_place_fused,
    "_fused_adagrad_": _in_place_fused,
    "resize_": _resize,
    "index": _index,
}
"""By an operator's name. Each may return NotImplemented: then it is run like others."""
