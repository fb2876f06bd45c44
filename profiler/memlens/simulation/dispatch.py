"""Runs every operator on tensors without data, and tells the device's memory of what it makes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from memlens.errors import SimulationError
from memlens.simulation.backend import (
    SIMULATED,
    UNDISGUISED,
    DataLess,
    FakeTensor,
    on_device,
    simulated_device,
)
from memlens.simulation.host_memory import HostMemory
from memlens.simulation.in_place import InPlace
from memlens.simulation.kernels.products import adds_bias
from memlens.simulation.kernels.temporaries import temporaries
from memlens.simulation.memory import DeviceMemory
from memlens.simulation.nested import data_less, map_tensors, tensors
from memlens.simulation.operators import SPECIAL, to_host
from memlens.simulation.problems import Notes, refuse
from memlens.simulation.schema import Schema, schema_of
from memlens.simulation.values import MOST_BYTES, StandIn, Values, stand_in

__all__ = ["Simulation"]

_ATEN = torch.ops.aten
_FAKE = torch._C._TorchDispatchModeKey.FAKE
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


class Simulation(TorchDispatchMode):
    """Sees each operator that torch's dispatcher is asked for on this thread.

    Small tensors of the host are real: what a job does on the host goes its way. Large ones (models are
    often made there) have no data, nor has anything on the device.

    Args:
        memory: of the device.
        notes: gets what cannot be known.
        workspace_bytes: what cuBLAS is given at the first matrix product of a thread and stream.
        lt_workspace_bytes: the same of cuBLASLt, at the first to which a bias is added.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        notes: Notes,
        workspace_bytes: int,
        lt_workspace_bytes: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory
        self.notes = notes
        self.host = HostMemory()
        self.values = Values()
        self.data_less = DataLess()
        self.in_place = InPlace()
        self._workspace_bytes = workspace_bytes
        self._lt_workspace_bytes = lt_workspace_bytes
        self._lock = threading.RLock()

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
        if torch._C._get_dispatch_mode(_FAKE) is not None:
            # Torch works out shapes for itself (how shards of a tensor go on): no memory of the job's.
            return func(*args, **(kwargs or {}))
        is_fake = False
        for kind in types:
            if issubclass(kind, FakeTensor):
                is_fake = True
            elif kind is not torch.Tensor and kind is not torch.nn.Parameter:
                return NotImplemented  # a wrapper: what it does to the tensors inside comes here
        # What the simulation itself asks of tensors must not be disguised. Torch's machinery for tensors
        # without data is made for one thread.
        UNDISGUISED.depth += 1
        try:
            with self._lock, torch._C.DisableTorchFunction():
                return self.run(func, types, args, dict(kwargs) if kwargs else {}, is_fake)
        finally:
            UNDISGUISED.depth -= 1

    def run(
        self, func: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any], is_fake: bool
    ) -> Any:
        """Run one operator, from within the simulation."""
        facts = schema_of(func)
        if kwargs:
            device = kwargs.get("device")
            if device is not None:
                device = kwargs["device"] = simulated_device(device)
                is_fake = is_fake or device.type == SIMULATED.type
            if kwargs.get("pin_memory"):
                del kwargs["pin_memory"]
                return self.run(func, types, args, kwargs, is_fake).pin_memory()
            if kwargs.get("generator") is not None and is_fake:
                kwargs["generator"] = None
        if not is_fake and not (facts.is_factory and self._is_large(facts, args, kwargs)):
            return func(*args, **kwargs)
        special = SPECIAL.get(facts.name)
        if special is not None:
            result = special(self, func, types, args, kwargs)
            if result is not NotImplemented:
                return result
        elif facts.composite is not None:
            with self:
                return func._op_dk(facts.composite, *args, **kwargs)
        return self.without_data(func, facts, types, args, kwargs)

    def _is_large(self, facts: Schema, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        if facts.sizes < 0 or facts.sizes >= len(args):
            return False
        count = 1
        for size in args[facts.sizes]:
            count *= int(size)
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return bool(count * dtype.itemsize > MOST_BYTES)

    def without_data(
        self, func: Any, facts: Schema, types: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator, of which some tensor has no data, as it is."""
        known = self._known(func, facts, args, kwargs)
        outs = [
            (storage, storage.nbytes())
            for name in facts.outs
            for tensor in data_less(kwargs.get(name))
            for storage in (tensor.untyped_storage(),)
        ]
        try:
            result = self.data_less.__torch_dispatch__(func, types, args, kwargs)
        except _UNKNOWN as error:
            if known is None:
                raise self.refuse(func, error) from None
            result = map_tensors(self._like, known)
        except SimulationError:
            raise
        except RuntimeError as error:
            if isinstance(error, NotImplementedError) or _NO_FAKE in str(error):
                raise self.refuse(func, error) from None
            raise
        memory = self.memory
        if facts.replaced is not None and any(map(on_device, data_less(result))):
            result = facts.replaced(func, args, kwargs, result)
        if facts.limit and on_device(args[0]):
            self.notes.add(facts.limit)
        if facts.makes:
            used = temporaries(func, args, kwargs, result)
            for tensor in data_less(result):
                kind = tensor.fake_device.type
                if kind == SIMULATED.type:
                    memory.take(tensor.untyped_storage())
                elif kind == "cpu":
                    self.host.take(tensor.untyped_storage())
            if used:
                memory.pass_through(used)
            if facts.is_product and on_device(args[0]):
                self._multiply(facts, args, kwargs)
        elif facts.writes and (used := temporaries(func, args, kwargs, result)):
            memory.pass_through(used)
        for storage, size_bytes in outs:
            if storage.nbytes() != size_bytes:
                memory.resize(storage)
        if known is not None:
            for tensor, value in zip(data_less(result), tensors(known), strict=False):
                self.values.set(tensor, value)
        elif facts.writes:
            for place in facts.writes:
                for tensor in data_less(args[place] if place < len(args) else None):
                    self.values.lose(tensor)
        return result

    def _multiply(self, facts: Schema, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        self.memory.workspace(self._workspace_bytes, in_backward=in_backward)
        if facts.adds and adds_bias(args, kwargs):
            self.memory.workspace(self._lt_workspace_bytes, in_backward=in_backward, is_lt=True)

    # -- values --------------------------------------------------------------------------------

    def _known(self, func: Any, facts: Schema, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What an operator gives, if the values of all its tensors are known; else None."""
        values = self.values
        found = facts.is_factory
        for argument in args:
            for tensor in tensors(argument):
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

        plain = {key: map_tensors(real, value) for key, value in kwargs.items()}
        if plain.get("device") is not None:
            plain["device"] = torch.device("cpu")
        try:
            return func(*(map_tensors(real, each) for each in args), **plain)
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
        return to_host(self, tensor, tensor.dtype)  # type: ignore[no-any-return]

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
