"""`torch.autocast("cuda")` for tensors of the simulated device.

Torch's kernels for it look for CUDA tensors, so the device gets kernels of its own, which do as
aten/src/ATen/autocast_mode.h and autocast_mode.cpp do for CUDA, down to the order of the casts: they are
memory. The state (on or off, dtype, nesting) stays torch's own; what is set for `cuda` is set for the
device too, so that what asks for `cuda`'s state needs no change.

What is touched of torch, besides `torch.library` (2.13):

* replaced, in `torch` and in `torch._C`, from which the former has them: `set_autocast_enabled`,
  `set_autocast_dtype`, `set_autocast_gpu_dtype`, `clear_autocast_cache`. `torch.autocast` calls them
  by their names in `torch`.
* used: `torch._C._ExcludeDispatchKeyGuard`, `torch._C.DispatchKey`, `torch._C.DispatchKeySet`,
  `torch._C.DisableTorchFunction`, `torch._C._dispatch_keys`, `torch._C._dispatch_get_all_op_names`,
  `torch._C._dispatch_has_kernel_for_dispatch_key`, `OpOverload._schema`, `torch.Tensor._is_view`,
  `torch.utils.weak.WeakIdRef`.

Left to the others: tensors say that they are on `cuda` (`custom_fwd` asks), `torch.cuda` that there is
such a device (`torch.autocast` and `GradScaler` ask; the latter needs nothing else), and the backend's
module which dtypes autocast may have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from inspect import signature
from typing import Any

import torch
from torch.utils.weak import WeakIdRef

from memlens.simulation import autocast_ops as ops

__all__ = ["install_autocast", "lower_precision", "ops_without_policy"]

_KEY = "AutocastPrivateUse1"
_AUTOCAST: Any = getattr(torch._C.DispatchKey, _KEY)
_BANNED = (
    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.\n"
    "Many models use a sigmoid layer right before the binary cross entropy layer.\n"
    "In this case, combine the two layers using torch.nn.functional.binary_cross_entropy_with_logits\n"
    "or torch.nn.BCEWithLogitsLoss.  binary_cross_entropy_with_logits and BCEWithLogits are\n"
    "safe to autocast."
)  # torch's words

_Change = Callable[[Sequence[Any], dict[str, Any]], Sequence[Any]]
"""Gives an operator's new arguments; changes those by name in place."""

_libraries: list[torch.library.Library] = []
"""Their kernels go when they do."""
_casts: dict[WeakIdRef, torch.Tensor] = {}
"""Weights in lower precision, until the outermost region ends; also of weights that are gone by then."""


def install_autocast(device_name: str) -> None:
    """Have autocast treat tensors of the simulated device as CUDA's; for the life of the process.

    Args:
        device_name: what the registered backend is called.
    """
    if _libraries:
        return
    _keeps_history()  # asks while tensors are real and no region is open
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, _KEY)
    treated = torch.library.Library("aten", "IMPL")
    _libraries.extend((others, treated))
    known = _treated_by_cuda()
    for names, change in (
        (ops.LOWER_PRECISION, _to_lower_precision),
        (ops.FLOAT32, _to_float32),
        (ops.FLOAT32_RESULT, _ask_for_float32),
        (ops.WIDEST, _to_widest),
    ):
        for name in known.intersection(names):
            treated.impl(name, _kernel(_operator(name), change), _KEY)
    for name in known.intersection(ops.FLOAT32_APPENDED):
        operator = _operator(ops.FLOAT32_APPENDED[name])
        treated.impl(name, _kernel(operator, _append_float32(_operator(name))), _KEY)
    for name in known & ops.BANNED:
        treated.impl(name, _refuse, _KEY)
    _replace_setters(("cuda", device_name))


def ops_without_policy() -> list[str]:
    """Operators that the running torch's autocast treats for CUDA, and that we leave alone."""
    lists = (ops.LOWER_PRECISION, ops.FLOAT32, ops.FLOAT32_RESULT, ops.FLOAT32_APPENDED, ops.WIDEST)
    return sorted(_treated_by_cuda().difference(*lists, ops.BANNED, ops.LEFT_OUT))


def lower_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that autocast treats as an operator of its list for lower precision.

    Args:
        function: stands for the operator; none of its parameters is by name only.
    """
    kernel = _kernel(function, _to_lower_precision)
    parameters = signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled("cuda"):
            return function(*args, **kwargs)
        given = parameters.bind(*args, **kwargs)
        given.apply_defaults()
        return kernel(*given.args)

    return call


def _treated_by_cuda() -> set[str]:
    """The kernels are in builds without CUDA as well."""
    return {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
    }


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _kernel(operator: Callable[..., Any], change: _Change) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(_AUTOCAST)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        # A C++ kernel is not seen by `__torch_function__` either.
        with torch._C.DisableTorchFunction(), torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*change(args, kwargs), **kwargs)

    return kernel


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(_BANNED)


# -- what is done to arguments: no operator of the lists takes a tensor by name only ---------------


def _to_lower_precision(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    return _cast_all(args, torch.get_autocast_dtype("cuda"))


def _to_float32(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    return _cast_all(args, torch.float32)


def _ask_for_float32(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    asks = kwargs.get("dtype") is not None or any(isinstance(each, torch.dtype) for each in args)
    if not asks and _is_eligible(args[0]):
        kwargs["dtype"] = torch.float32
    return args


def _append_float32(operator: Any) -> _Change:
    # The overload that is run instead has no default values, and none come with the arguments.
    defaults = [each.default_value for each in operator._schema.arguments]

    def append(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
        kwargs["dtype"] = torch.float32 if _is_eligible(args[0]) else args[0].dtype
        return [*args, *defaults[len(args) :]]

    return append


def _to_widest(args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
    lower = widest = torch.get_autocast_dtype("cuda")
    for tensor in _tensors(args):
        if not _is_eligible(tensor):
            continue
        if torch.float32 in (widest, tensor.dtype):
            widest = torch.float32
        elif tensor.dtype is not lower:
            raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
    return _cast_all(args, widest)


def _tensors(args: Sequence[Any]) -> list[torch.Tensor]:
    flat = [
        item for each in args for item in (each if isinstance(each, (list, tuple)) else (each,))
    ]
    return [each for each in flat if isinstance(each, torch.Tensor)]


def _is_eligible(tensor: torch.Tensor) -> bool:
    # The key tells that it is on the device, whatever name that has for those who ask the tensor.
    return (
        tensor.is_floating_point()
        and tensor.dtype is not torch.float64
        and torch._C._dispatch_keys(tensor).has(_AUTOCAST)
    )


def _cast_all(args: Sequence[Any], dtype: torch.dtype) -> Sequence[Any]:
    """The last argument first, as the compiler has it that CUDA's torch is built with."""

    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return _cast(value, dtype)
        if isinstance(value, (list, tuple)):
            return [cast(each) for each in value]
        return value

    return [cast(each) for each in reversed(args)][::-1]


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype is dtype or not _is_eligible(tensor):
        return tensor
    if not (
        dtype is torch.get_autocast_dtype("cuda")
        and tensor.dtype is torch.float32
        and tensor.requires_grad
        and tensor.is_leaf
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
        and not (_keeps_history() and torch.is_inference_mode_enabled())
    ):
        return tensor.to(dtype)
    weight = WeakIdRef(tensor)
    if weight not in _casts:
        with torch.set_grad_enabled(_keeps_history() or torch.is_grad_enabled()):
            _casts[weight] = tensor.to(dtype)
    return _casts[weight]


@cache
def _keeps_history() -> bool:
    """Whether a weight's cast is good for training even if made under `no_grad`.

    Torch has it so since pull request 165068; this asks the host's autocast, which has the same cache.
    """
    weight = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=True):
        with torch.no_grad():
            weight.mm(weight)
        with torch.enable_grad():
            return weight.mm(weight).requires_grad


# -- the state -------------------------------------------------------------------------------------


def _replace_setters(names: tuple[str, str]) -> None:
    """Have both names of the device mean the same, and the end of a region forget its casts."""
    torch_: Any = torch
    set_gpu_dtype = torch_.set_autocast_gpu_dtype
    clear = torch_.clear_autocast_cache
    set_dtype = _set_both(torch_.set_autocast_dtype, torch_.get_autocast_dtype, names)

    def set_autocast_gpu_dtype(dtype: torch.dtype) -> None:
        set_gpu_dtype(dtype)
        set_dtype("cuda", dtype)

    def clear_autocast_cache() -> None:
        clear()
        _casts.clear()

    for owner in (torch_, torch_._C):
        owner.set_autocast_enabled = _set_both(
            torch_.set_autocast_enabled, torch_.is_autocast_enabled, names
        )
        owner.set_autocast_dtype = set_dtype
        owner.set_autocast_gpu_dtype = set_autocast_gpu_dtype
        owner.clear_autocast_cache = clear_autocast_cache


def _set_both(
    setter: Callable[..., None], getter: Callable[[str], Any], names: tuple[str, str]
) -> Callable[..., None]:
    def set_both(*args: Any, **kwargs: Any) -> None:
        setter(*args, **kwargs)
        named = kwargs.get("device_type", args[0] if args else None)
        device = named if isinstance(named, str) else "cuda"  # torch takes one name less for CUDA's
        if torch.device(device).type in names:
            for name in names:
                setter(name, getter(device))

    return set_both
