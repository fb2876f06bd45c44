"""Runs every operator on tensors without data, and tells the device's memory of what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from memlens.errors import SimulationError
from memlens.simulation.backend import SIMULATED, DataLess, FakeTensor, Undisguised
from memlens.simulation.in_place import OPERATORS, InPlace
from memlens.simulation.kernels.replaced import replacement
from memlens.simulation.kernels.temporaries import LIMITS, temporaries
from memlens.simulation.memory import DeviceMemory
from memlens.simulation.problems import Notes, refuse
from memlens.simulation.values import MOST_BYTES, StandIn, Values, stand_in

__all__ = ["Simulation", "on_device", "simulated_device"]

_ATEN = torch.ops.aten
_MATRIX_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "dot", "mv", "_addmm_activation"})  # fmt: skip
"""Operators that ask cuBLAS, which wants a workspace."""
_COMPOSED = frozenset({
    "binary_cross_entropy_with_logits", "dist", "embedding", "logsumexp", "soft_margin_loss",
    "soft_margin_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward", "_safe_softmax",
    "_euclidean_dist", "mvlgamma", "ldexp", "block_diag", "rot90", "nan_to_num", "linalg_lstsq",
})  # fmt: skip
"""Operators that CUDA has no kernel for: torch makes them of others, whose results are memory as well."""
_UNKNOWN = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
_NO_FAKE = "no fake impl registered"
"""What torch says of a library's operator that it cannot run without data."""
_DATA_WAY_OUT = (
    "what it gives depends on values, and a simulation has none; give the job a configuration in which "
    "this does not happen, or measure it with memlens run"
)


def simulated_device(device: Any) -> Any:
    """A device as the simulation has it: any CUDA device is the simulated one."""
    if device is None:
        return None
    if isinstance(device, str):
        device = torch.device(device)
    elif isinstance(device, int):
        return SIMULATED
    if isinstance(device, torch.device) and device.type in ("cuda", SIMULATED.type):
        return SIMULATED
    return device


def on_device(tensor: Any) -> bool:
    """Whether this is a tensor of the simulated device."""
    return isinstance(tensor, FakeTensor) and tensor.fake_device.type == SIMULATED.type


@dataclass(frozen=True)
class _Facts:
    """What an operator's schema says."""

    makes: bool
    """Some of what it returns is new."""
    writes: tuple[int, ...]
    """Positions of arguments that it writes into."""
    is_factory: bool
    """It takes no tensor."""
    sizes: int
    """Position of the argument that says the size; -1: none does."""
    name: str
    is_product: bool
    replaced: Callable[..., Any] | None
    """Makes its results those of CUDA."""
    outs: tuple[str, ...]
    """Names of arguments that take the results, and are made as large as those."""
    composite: Any
    """Key of the kernel that makes it of other operators, where these are to be seen; else None."""
    limit: str
    """What is not known of its memory; empty: nothing to speak of."""


@cache
def _facts(func: torch._ops.OpOverload) -> _Facts:
    schema = func._schema
    arguments = schema.arguments
    name = schema.name.partition("::")[2]
    return _Facts(
        makes=any(each.alias_info is None for each in schema.returns),
        writes=tuple(
            place
            for place, each in enumerate(arguments)
            if each.alias_info is not None and each.alias_info.is_write
        ),
        is_factory=not any("Tensor" in str(each.type) for each in arguments),
        sizes=next((place for place, each in enumerate(arguments) if each.name == "size"), -1),
        name=name,
        is_product=name in _MATRIX_PRODUCTS,
        replaced=replacement(func),
        outs=tuple(each.name for each in arguments if each.is_out),
        composite=_composite(func, name),
        limit=LIMITS.get(name, ""),
    )


def _composite(func: torch._ops.OpOverload, name: str) -> Any:
    has = func.has_kernel_for_dispatch_key
    keys = torch._C.DispatchKey
    if func.namespace == "prim" or name in _SPECIAL or has(keys.PrivateUse1):
        return None
    # Autograd takes these apart; they come where it is not asked: in inference mode, in other composites.
    if has(keys.CompositeImplicitAutograd) and not has(keys.CPU):
        return keys.CompositeImplicitAutograd
    explicit = (keys.CompositeExplicitAutograd, keys.CompositeExplicitAutogradNonFunctional)
    return next((key for key in explicit if name in _COMPOSED and has(key)), None)


class Simulation(TorchDispatchMode):
    """Sees each operator that torch's dispatcher is asked for on this thread.

    Small tensors of the host are real: what a job does on the host goes its way. Large ones (models are
    often made there) have no data, nor has anything on the device.

    Args:
        memory: of the device.
        notes: gets what cannot be known.
        workspace_bytes: what cuBLAS is given at the first matrix product of a thread and stream.
    """

    def __init__(self, memory: DeviceMemory, notes: Notes, workspace_bytes: int) -> None:
        super().__init__()
        self.memory = memory
        self.notes = notes
        self.values = Values()
        self.data_less = DataLess()
        self.in_place = InPlace()
        self._workspace_bytes = workspace_bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled, so torch need not wrap what is called for every operator."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        is_fake = False
        for kind in types:
            if issubclass(kind, FakeTensor):
                is_fake = True
            elif kind is not torch.Tensor and kind is not torch.nn.Parameter:
                return NotImplemented  # a wrapper: what it does to the tensors inside comes here
        # What the simulation itself asks of tensors must not be disguised.
        Undisguised.depth += 1
        try:
            with torch._C.DisableTorchFunction():
                return self._run(func, types, args, dict(kwargs) if kwargs else {}, is_fake)
        finally:
            Undisguised.depth -= 1

    def _run(
        self, func: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any], is_fake: bool
    ) -> Any:
        facts = _facts(func)
        if kwargs:
            device = kwargs.get("device")
            if device is not None:
                device = kwargs["device"] = simulated_device(device)
                is_fake = is_fake or device.type == SIMULATED.type
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = None
            if kwargs.get("generator") is not None and is_fake:
                kwargs["generator"] = None
        if not is_fake and not (facts.is_factory and self._is_large(facts, args, kwargs)):
            return func(*args, **kwargs)
        if facts.composite is not None:
            with self:
                return func._op_dk(facts.composite, *args, **kwargs)
        special = _SPECIAL.get(facts.name)
        if special is not None:
            result = special(self, func, types, args, kwargs)
            if result is not NotImplemented:
                return result
        return self._without_data(func, facts, types, args, kwargs)

    def _is_large(self, facts: _Facts, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        if facts.sizes < 0 or facts.sizes >= len(args):
            return False
        count = 1
        for size in args[facts.sizes]:
            count *= int(size)
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return bool(count * dtype.itemsize > MOST_BYTES)

    def _without_data(
        self, func: Any, facts: _Facts, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        known = self._known(func, facts, args, kwargs)
        outs = [
            (storage, storage.nbytes())
            for name in facts.outs
            for tensor in _tensors(kwargs.get(name))
            for storage in (tensor.untyped_storage(),)
        ]
        try:
            result = self.data_less.__torch_dispatch__(func, types, args, kwargs)
        except _UNKNOWN as error:
            if known is None:
                raise self.refuse(func, error) from None
            result = _map(self._like, known)
        except SimulationError:
            raise
        except RuntimeError as error:
            if isinstance(error, NotImplementedError) or _NO_FAKE in str(error):
                raise self.refuse(func, error) from None
            raise
        memory = self.memory
        if facts.replaced is not None and any(map(on_device, _tensors(result))):
            result = facts.replaced(func, args, kwargs, result)
        if facts.limit and on_device(args[0]):
            self.notes.add(facts.limit)
        if facts.makes:
            used = temporaries(func, args, kwargs, result)
            for tensor in _tensors(result):
                if tensor.fake_device.type == SIMULATED.type:
                    memory.take(tensor.untyped_storage())
            if used:
                memory.pass_through(used)
            if facts.is_product and on_device(args[0]):
                in_backward = torch._C._current_graph_task_id() != -1
                memory.workspace(self._workspace_bytes, in_backward=in_backward)
        elif facts.writes and (used := temporaries(func, args, kwargs, result)):
            memory.pass_through(used)
        for storage, size_bytes in outs:
            if storage.nbytes() != size_bytes:
                memory.resize(storage)
        if known is not None:
            for tensor, value in zip(_tensors(result), _plain_tensors(known), strict=False):
                self.values.set(tensor, value)
        elif facts.writes:
            for place in facts.writes:
                for tensor in _tensors(args[place] if place < len(args) else None):
                    self.values.lose(tensor)
        return result

    # -- values --------------------------------------------------------------------------------

    def _known(self, func: Any, facts: _Facts, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What an operator gives, if the values of all its tensors are known; else None."""
        values = self.values
        found = facts.is_factory
        for argument in args:
            for tensor in _plain_tensors(argument):
                if isinstance(tensor, FakeTensor):
                    if values.of(tensor) is None:
                        return None
                    found = True
                elif tensor.nbytes > MOST_BYTES:
                    return None
                else:
                    found = True
        if (
            not found
            or facts.name in _RANDOM
            or (facts.is_factory and self._is_large(facts, args, kwargs))
        ):
            return None

        def real(value: Any) -> Any:
            return values.of(value) if isinstance(value, FakeTensor) else value

        plain = {key: _map(real, value) for key, value in kwargs.items()}
        if plain.get("device") is not None:
            plain["device"] = torch.device("cpu")
        try:
            return func(*(_map(real, each) for each in args), **plain)
        except Exception:  # the same that the job would see, or none of its business
            return None

    def _like(self, value: torch.Tensor) -> Any:
        return self.data_less.__torch_dispatch__(
            _ATEN.empty.memory_format,
            (),
            (list(value.shape),),
            {"dtype": value.dtype, "device": SIMULATED},
        )

    def read(self, tensor: torch.Tensor) -> Any:
        """The one element of a tensor, for those who need a plain number."""
        value = self.values.of(tensor)
        if value is not None:
            return value.item()
        if not tensor.dtype.is_floating_point and tensor.dtype is not torch.bool:
            raise self._no_size()
        self.notes.add("a value that is read from the device is a stand-in")
        return stand_in(tensor.dtype)

    def read_item(self, tensor: FakeTensor) -> Any:
        """What `Tensor.item()` gives: an integer that is not known is no size."""
        value = self.values.of(tensor)
        if value is not None or tensor.numel() != 1:
            return self.read(tensor)
        self.notes.add("a value that is read from the device is a stand-in")
        number = stand_in(tensor.dtype)
        return StandIn(number, self._no_size) if type(number) is int else number

    def _no_size(self) -> SimulationError:
        return refuse(
            self.notes,
            "a size or index that is read from the device",
            "tensors have no data here",
            "give the job the number in another way",
        )

    def to_host(self, tensor: FakeTensor) -> torch.Tensor:
        """A tensor's values, or stand-ins, as a real tensor."""
        return _to_host(self, tensor, tensor.dtype)  # type: ignore[no-any-return]

    def refuse(self, func: Any, error: Exception) -> SimulationError:
        """The error for an operator that cannot be simulated."""
        return refuse(self.notes, _name(func, error), *_explain(error))


def _name(func: Any, error: Exception) -> str:
    inner = getattr(error, "func", None) or func
    name = getattr(inner, "_schema", None)
    return f"the operator {name.name if name is not None else inner}"


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        why, _, way_out = _DATA_WAY_OUT.partition("; ")
        return why, way_out
    return (
        "torch cannot run it without data",
        "a library that registers a fake implementation of it (torch.library.register_fake) makes it "
        "possible; measure it with memlens run otherwise",
    )


_RANDOM = frozenset(
    {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like",
     "randn_like", "randint_like", "native_dropout", "normal_", "uniform_", "random_", "bernoulli_",
     "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "exponential_"}
)  # fmt: skip
"""Operators whose values nobody may rely on."""


def _tensors(value: Any) -> Iterator[FakeTensor]:
    """The tensors without data among an operator's results or arguments."""
    if isinstance(value, FakeTensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _plain_tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _plain_tensors(item)


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(change, item) for item in value)
    return value


# -- operators that are not just run ---------------------------------------------------------------


def _local_scalar_dense(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return sim.read(args[0])


def _equal(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    values = [sim.values.of(each) if isinstance(each, FakeTensor) else each for each in args[:2]]
    if values[0] is not None and values[1] is not None:
        return torch.equal(*values)
    sim.notes.add("a comparison of two tensors is a stand-in")
    return False


def _copy(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    target, origin = args[0], args[1]
    value = sim.values.of(origin) if isinstance(origin, FakeTensor) else origin
    if isinstance(target, FakeTensor):
        result = sim._without_data(func, _facts(func), types, args, kwargs)
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
    return _to_host(sim, args[0], kwargs.get("dtype") or args[0].dtype)


def _to_host(sim: Simulation, origin: Any, dtype: torch.dtype) -> Any:
    if origin.numel() * dtype.itemsize > MOST_BYTES:
        return NotImplemented  # host tensors of this size have no data
    value = sim.values.of(origin)
    if value is not None:
        return value.to(dtype, copy=True)
    sim.notes.add("a tensor that is copied from the device holds stand-ins")
    return torch.full(tuple(origin.shape), stand_in(dtype), dtype=dtype)


def _device_put(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    device = simulated_device(args[1])
    return sim._run(_ATEN._to_copy.default, types, (args[0],), {"device": device}, is_fake=True)


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
        found = sim._run(_ATEN.nonzero.default, types, (each,), {}, is_fake=True)
        numbers += [
            sim._run(_ATEN.select.int, types, (found, 1, place), {}, is_fake=True)
            for place in range(each.dim())
        ]
    return sim._run(func, types, (args[0], numbers, *args[2:]), kwargs, is_fake=True)


def _in_place(sim: Simulation, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """Torch takes a new tensor only because a mode is there."""
    if kwargs or not sim.in_place.is_meant(func, args):
        return NotImplemented
    used = temporaries(func, args, kwargs, args[0])
    if used:
        sim.memory.pass_through(used)
    sim.values.lose(args[0])
    return args[0]


_SPECIAL: dict[str, Callable[..., Any]] = {
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
