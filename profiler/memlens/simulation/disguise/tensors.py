"""What a script sees: the simulated device is called `cuda`, and a tensor on it has an address.

Tensors without data are of a class of their own, which gets the answers of CUDA tensors as methods: they
hold wherever somebody asks, in hooks and within torch's own Python code as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from memlens.simulation.autocast import lower_precision
from memlens.simulation.backend import (
    SIMULATED,
    UNDISGUISED,
    FakeTensor,
    on_device,
    simulated_device,
)
from memlens.simulation.dispatch import Simulation
from memlens.simulation.kernels.attention import scaled_dot_product_attention
from memlens.simulation.kernels.normalization import batch_norm
from memlens.simulation.problems import refuse

__all__ = ["CUDA", "disguise_tensors", "replace_kernels"]

CUDA = torch.device("cuda", 0)
_Tensor: Any = torch.Tensor


def disguise_tensors(simulation: Simulation) -> None:
    """Have tensors of the simulated device answer as CUDA's do; for the life of the process."""
    answers = _Answers(simulation)
    fake: Any = FakeTensor
    plain_device = fake.device

    def device(tensor: FakeTensor) -> torch.device:
        # Torch itself asks as well, and wants to know what there really is.
        if not UNDISGUISED.depth and on_device(tensor):
            return CUDA
        return plain_device.__get__(tensor)  # type: ignore[no-any-return]

    fake.device = property(device)
    fake.is_cuda = property(on_device)
    fake.is_cpu = property(lambda tensor: tensor.fake_device.type == "cpu")
    for name in (
        "get_device",
        "data_ptr",
        "type",
        "numpy",
        "record_stream",
        "item",
        "tolist",
        "__int__",
    ):
        setattr(fake, name, getattr(answers, name.strip("_") + "_of"))
    host = simulation.host

    def pin_memory(tensor: Any, device: Any = None) -> Any:
        host.pin(tensor.untyped_storage())
        return tensor

    _Tensor.pin_memory = pin_memory
    _Tensor.is_pinned = lambda tensor, device=None: host.is_pinned(tensor.untyped_storage())
    # Torch looks for the device before it asks anybody else, and on a CPU build finds none.
    _Tensor.cuda = (
        lambda tensor, device=None, non_blocking=False, memory_format=torch.preserve_format: (
            tensor.to(SIMULATED, non_blocking=non_blocking, memory_format=memory_format)
        )
    )
    _Tensor.to = _with_device_mapped(_Tensor.to)
    _disguise_wrappers()


def _with_device_mapped(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`tensor.to("cuda")`: torch looks for a device without a number, and on a CPU build finds none."""

    @wraps(plain)
    def to(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], (str, torch.device, int)):
            args = (simulated_device(args[0]), *args[1:])
        elif kwargs.get("device") is not None:
            kwargs["device"] = simulated_device(kwargs["device"])
        return plain(tensor, *args, **kwargs)

    return to


def _disguise_wrappers() -> None:
    """Tensors that hold others (quantised ones) lie where those do, and say so in the same way."""
    make: Callable[..., Any] = _Tensor._make_wrapper_subclass
    plain_device: Any = _Tensor.device

    def _make_wrapper_subclass(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        return make(*args, device=simulated_device(device), **kwargs)

    def device(tensor: Any) -> torch.device:
        found: torch.device = plain_device.__get__(tensor)
        return CUDA if found.type == SIMULATED.type and not UNDISGUISED.depth else found

    _Tensor._make_wrapper_subclass = staticmethod(_make_wrapper_subclass)
    _Tensor.device = property(device)


class _Answers:
    """Methods of tensors without data."""

    def __init__(self, simulation: Simulation) -> None:
        memory, notes = simulation.memory, simulation.notes

        def get_device_of(tensor: FakeTensor) -> int:
            return 0 if on_device(tensor) else -1

        def data_ptr_of(tensor: FakeTensor) -> int:
            start = memory.address(tensor.untyped_storage())
            return start and start + int(tensor.storage_offset()) * tensor.element_size()

        def type_of(tensor: FakeTensor, *args: Any, **kwargs: Any) -> Any:
            result = _Tensor.type(tensor, *args, **kwargs)
            if isinstance(result, str):
                return result.replace(f"torch.{SIMULATED.type}.", "torch.cuda.")
            return result

        def numpy_of(tensor: FakeTensor, **_: Any) -> Any:
            if on_device(tensor):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                    "tensor to host memory first."
                )
            raise refuse(
                notes,
                "Tensor.numpy() of a large host tensor",
                "host tensors of more than 1 MiB have no data here",
                "make it with NumPy, or read it from a file",
            )

        def record_stream_of(tensor: FakeTensor, s: Any) -> None:
            if on_device(tensor):
                memory.record_stream(tensor.untyped_storage(), getattr(s, "number", 0))

        def item_of(tensor: FakeTensor) -> Any:
            return simulation.read_item(tensor)

        def int_of(tensor: FakeTensor) -> int:
            return int(simulation.read_item(tensor))

        def tolist_of(tensor: FakeTensor) -> Any:
            return simulation.to_host(tensor).tolist()

        self.get_device_of, self.data_ptr_of, self.type_of = get_device_of, data_ptr_of, type_of
        self.numpy_of, self.record_stream_of, self.item_of = numpy_of, record_stream_of, item_of
        self.int_of, self.tolist_of = int_of, tolist_of


def replace_kernels() -> None:
    """Have the functions that choose between kernels choose as they do for CUDA."""
    functional: Any = torch.nn.functional
    attention = _on_device_only(
        functional.scaled_dot_product_attention,
        lower_precision(scaled_dot_product_attention),
        "query",
    )
    functional.scaled_dot_product_attention = attention
    torch._C._nn.scaled_dot_product_attention = attention
    plain: Callable[..., Any] = functional.batch_norm

    def normalize(
        input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Any:  # fmt: skip
        arguments = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        if not on_device(input):
            return plain(*arguments)
        return batch_norm(*arguments)

    functional.batch_norm = normalize


def _on_device_only(
    plain: Callable[..., Any], ours: Callable[..., Any], first: str
) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        if not on_device(args[0] if args else kwargs[first]):
            return plain(*args, **kwargs)
        return ours(*args, **kwargs)

    return function
