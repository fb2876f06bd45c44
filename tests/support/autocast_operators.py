"""What autocast makes of operators and of a model, on the simulated device and elsewhere.

`python -m tests.support.autocast_operators` prints it as JSON. Of the simulation, there are only the
accelerator and autocast.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from memlens.simulation.autocast import install_autocast, ops_without_policy
from memlens.simulation.backend import DEVICE_TYPE, SIMULATED, DataLess, register_accelerator
from memlens.simulation.kernels.softmax import convert_in_softmax

Row = list[Any]
"""An operator's name, the dtypes (or values) of its arguments and results, and arguments' shapes."""
PRECISIONS = (torch.float16, torch.bfloat16)


class Recorder(TorchDispatchMode):
    """Writes down each operator that is run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Row] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is not torch.ops.prim.device.default:
            shapes = [list(each.shape) for each in args if isinstance(each, torch.Tensor)]
            self.rows.append([str(func), told(args), told(dict(kwargs)), told(result), shapes])
        return result

    def casts(self) -> list[str]:
        """The dtypes that tensors were cast to, in order."""
        return [row[3] for row in self.rows if row[0] == "aten._to_copy.default"]


def told(value: Any) -> Any:
    """An argument or a result, as far as dtypes matter."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.Tensor):
        return told(value.dtype)
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items()}
    return value if isinstance(value, (int, float, str)) else type(value).__name__


def kernels() -> dict[str, Any]:
    """Each operator of torch's own lists, with torch's kernels for CUDA and with ours for the device.

    Torch's kernels are in every build, and work for CUDA tensors without data as long as nothing asks
    for the device.
    """
    lists = test_lists()
    return {
        "without_policy": ops_without_policy(),
        "compared": {
            told(dtype): [
                outcomes(lists, "cuda", dtype),
                outcomes(lists, SIMULATED, dtype),
            ]
            for dtype in PRECISIONS
        },
        "weights": [weights("cpu"), weights(DEVICE_TYPE)],
    }


def weights(device: str) -> dict[str, list[Row]]:
    """What two layers with one weight run: the host's autocast has the cache that CUDA's has."""
    modes: dict[str, list[Any]] = {
        "grad": [torch.enable_grad],
        "no_grad, then grad": [torch.no_grad, torch.enable_grad],
        "grad, then no_grad": [torch.enable_grad, torch.no_grad],
        "inference": [torch.inference_mode],
    }
    found: dict[str, list[Row]] = {}
    with DataLess():
        for name, contexts in modes.items():
            where = SIMULATED if device == DEVICE_TYPE else torch.device(device)
            weight = torch.empty(4, 4, device=where, requires_grad=True)
            bias = torch.empty(4, device=where, requires_grad=True)
            line = torch.empty(2, 4, device=where)
            results = []
            with Recorder() as recorder:
                with torch.autocast(device, dtype=torch.bfloat16):
                    for context in contexts:
                        with context():
                            out = functional.linear(line, weight, bias)
                            results.append(functional.linear(out, weight) @ weight.t())
                for out in results:
                    if out.requires_grad:
                        out.backward(torch.empty_like(out))
            found[name] = recorder.rows
    return found


def test_lists() -> type[Any]:
    """Torch's lists for its own tests, which need packages that few have."""
    name = "torch.testing._internal.common_utils"
    module = ModuleType(name)
    module.__dict__.update(TEST_WITH_ROCM=False, TestCase=object)
    sys.modules[name] = module
    from torch.testing._internal.autocast_test_lists import AutocastTestLists

    return AutocastTestLists


def outcomes(lists: type[Any], device: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What each operator is run as, and the dtype of its result or its error."""
    found: dict[str, Any] = {}
    with DataLess():
        of_torch = [
            (kind, name, operator(kind, name), args, (rest or [{}])[-1])
            for kind, entries in vars(lists(device)).items()
            for name, args, *rest in entries
        ]
        for place, (kind, name, function, args, kwargs) in enumerate([*of_torch, *more(device)]):
            result: Any = None
            with Recorder() as recorder:
                try:
                    with torch.autocast("cuda", dtype=dtype), torch.no_grad():
                        kwargs = kwargs if isinstance(kwargs, dict) else {}
                        result = told(function(*args, **kwargs))
                except Exception as error:
                    result = f"{type(error).__name__}: {error}"
            found[f"{kind}/{place}/{name}"] = [recorder.rows, result]
    return found


def operator(kind: str, name: str) -> Callable[..., Any]:
    """By the name that torch's lists have."""
    if kind.startswith("methods"):
        return lambda first, *others: getattr(first, name)(*others)
    private: Any = torch._C
    owners = (torch, private._nn, private._linalg, functional)
    function: Callable[..., Any] = next(
        getattr(owner, name) for owner in owners if hasattr(owner, name)
    )
    return function


def more(device: Any) -> list[tuple[str, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    """What torch's lists leave out: other overloads, dtypes that are asked for, float64."""
    aten = torch.ops.aten

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    half, line = make(4, 4, dtype=torch.float16), make(4, dtype=torch.float16)
    square = make(4, 4)
    image = make(2, 4, 8, 8, dtype=torch.float16)

    def cases() -> dict[str, tuple[Any, ...]]:
        return {
            "linear, float64": (
                functional.linear,
                make(4, 4, dtype=torch.float64),
                square.double(),
            ),
            "mm, integers": (torch.mm, half.int(), half.int()),
            "norm.Scalar": (aten.norm.Scalar, half),
            "norm.Scalar, p": (aten.norm.Scalar, half, 1),
            "norm.ScalarOpt_dim": (aten.norm.ScalarOpt_dim, half, 2, [0]),
            "norm.ScalarOpt_dim, float64": (aten.norm.ScalarOpt_dim, half.double(), 2, [0], True),
            "linalg_vector_norm": (torch.linalg.vector_norm, half),
            "linalg_matrix_norm": (torch.linalg.matrix_norm, half),
            "sum, asked": (lambda: half.sum(dtype=torch.bfloat16),),
            "softmax, asked": (lambda: half.softmax(-1, dtype=torch.float64),),
            "softmax, bfloat16": (lambda: half.bfloat16().softmax(-1),),
            "log_softmax, float32": (lambda: square.log_softmax(-1),),
            "cross_entropy": (
                functional.cross_entropy,
                half,
                torch.zeros_like(line, dtype=torch.long),
            ),
            "huber_loss": (functional.huber_loss, half, half),
            "native_layer_norm": (torch.native_layer_norm, half, [4], line, line, 1e-5),
            "interpolate": (lambda: functional.interpolate(image, scale_factor=2.0),),
            "interpolate, bicubic": (
                lambda: functional.interpolate(image, scale_factor=2.0, mode="bicubic"),
            ),
            "gelu": (functional.gelu, half),
            "add_": (lambda: square.clone().add_(half),),
        }

    return [("more", name, call, tuple(args), {}) for name, (call, *args) in cases().items()]


class Model(nn.Module):
    """A little of everything; its middle layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, device=SIMULATED)
        self.middle = nn.Linear(16, 16, device=SIMULATED)
        self.norm = nn.LayerNorm(16, device=SIMULATED)
        self.head = nn.Linear(16, 10, device=SIMULATED)

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss, with whatever autocast does."""
        hidden = functional.relu(self.convolution(image)).flatten(1)
        hidden = self.middle(self.middle(hidden))
        hidden = functional.softmax(self.norm(hidden), -1)
        return functional.cross_entropy(self.head(hidden), target)

    def by_hand(self, image: torch.Tensor, target: torch.Tensor, low: torch.dtype) -> torch.Tensor:
        """The loss, cast as CUDA's lists have it: last arguments first, and each weight once."""
        bias, weight = self.convolution.bias, self.convolution.weight
        assert bias is not None
        bias, weight = bias.to(low), weight.to(low)
        hidden = functional.conv2d(image.to(low), weight, bias)
        hidden = functional.relu(hidden).flatten(1)
        bias, weight = self.middle.bias.to(low), self.middle.weight.to(low)
        hidden = functional.linear(functional.linear(hidden, weight, bias), weight, bias)
        hidden = self.norm(hidden.to(torch.float32))
        hidden = functional.softmax(hidden, -1)
        bias, weight = self.head.bias.to(low), self.head.weight.to(low)
        hidden = functional.linear(hidden.to(low), weight, bias)
        # `cross_entropy_loss` asks for a result of its input's dtype, so autocast leaves it so.
        hidden = functional.log_softmax(hidden, 1)
        return functional.nll_loss(hidden.to(torch.float32), target)


def model() -> dict[str, Any]:
    """Forward and backward of a model, by autocast and cast by hand."""
    found: dict[str, Any] = {}
    with DataLess():
        image = torch.empty(2, 3, 4, 4, device=SIMULATED)
        target = torch.zeros(2, dtype=torch.long, device=SIMULATED)
        for dtype in PRECISIONS:
            both = []
            for by_hand in (False, True):
                model = Model()
                with Recorder() as recorder:
                    with torch.autocast("cuda", dtype=dtype, enabled=not by_hand):
                        loss = (
                            model.by_hand(image, target, dtype) if by_hand else model(image, target)
                        )
                    forward = len(recorder.rows)
                    loss.backward()
                gradients = [told(each.grad) for each in model.parameters()]
                both.append([recorder.rows[:forward], recorder.rows[forward:], gradients])
            found[told(dtype)] = both
    return found


def plain() -> dict[str, Any]:
    """What needs no more than the accelerator and autocast."""
    register_accelerator()
    install_autocast(DEVICE_TYPE)
    convert_in_softmax()
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    return {**kernels(), "model": model()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(plain()))
