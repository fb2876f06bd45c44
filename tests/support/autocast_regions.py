"""How regions of autocast and scaled gradients behave in a simulation.

`python -m tests.support.autocast_regions` prints it as JSON.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tests.support.autocast_operators import Recorder, told
from torch import nn
from torch.utils import checkpoint

from memlens.simulation.autocast import install_autocast, lower_precision
from memlens.simulation.backend import DEVICE_TYPE
from memlens.simulation.disguise.cuda_api import Card
from memlens.simulation.process import begin_simulation

_amp: Any = torch.amp
_Function: Any = torch.autograd.Function


def card() -> Card:
    """An H100."""
    return Card(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        total_memory=80 * 2**30,
        multi_processor_count=132,
        max_threads_per_multi_processor=2048,
        warp_size=32,
        is_integrated=False,
        is_multi_gpu_board=False,
        gcnArchName="",
    )


def regions() -> dict[str, Any]:
    """The state of autocast, its cache of weights, and what else asks for either."""
    return {
        "state": states(),
        "casts": casts(),
        "memory": memory(),
        "custom": custom_functions(),
        "checkpoint": checkpoints(),
        "host": host(),
        "stands_for": stands_for(),
    }


def states() -> dict[str, Any]:
    """How regions open, nest and close."""

    def state() -> list[Any]:
        on = [torch.is_autocast_enabled(), torch.is_autocast_enabled("cuda")]
        return [*on, told(torch.get_autocast_dtype("cuda")), product()]

    def product() -> str:
        matrix = torch.empty(2, 2, device="cuda")
        return str(told(matrix @ matrix))

    found: dict[str, Any] = {"before": state()}
    with torch.autocast("cuda"):
        found["default"] = state()
        with torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16):
            found["nested"] = state()
            with torch.autocast("cuda", enabled=False):
                found["disabled"] = state()
            found["enabled again"] = state()
        found["default again"] = state()
    with torch.cuda.amp.autocast():
        found["torch.cuda.amp"] = state()
    with torch.autocast(DEVICE_TYPE, dtype=torch.bfloat16):
        found["the device's own name"] = state()
    found["decorator"] = torch.autocast("cuda", dtype=torch.bfloat16)(state)()
    try:
        with torch.autocast("cuda"):
            raise ValueError
    except ValueError:
        found["after an error"] = state()
    torch.set_autocast_enabled(True)
    torch.set_autocast_gpu_dtype(torch.bfloat16)
    found["old setters"] = state()
    torch.set_autocast_enabled(False)
    torch.set_autocast_dtype("cuda", torch.float16)
    found["after"] = state()
    return found


def casts() -> dict[str, int]:
    """How often a weight that is used twice is cast."""
    layer, matrix = nn.Linear(4, 4, bias=False, device="cuda"), torch.empty(4, 4, device="cuda")
    matrix = matrix.half()
    found: dict[str, int] = {}

    def use(name: str, **kwargs: Any) -> None:
        with Recorder() as recorder:
            with torch.autocast("cuda", **kwargs):
                layer(matrix)
                with torch.autocast("cuda", **kwargs):
                    layer(matrix)
                layer(matrix)
            with torch.autocast("cuda", **kwargs):
                layer(matrix)
        found[name] = len(recorder.casts())

    use("cached")
    use("not cached", cache_enabled=False)
    layer.requires_grad_(False)
    use("frozen")
    layer.requires_grad_(True)
    with Recorder() as recorder, torch.autocast("cuda"):
        matrix.mm(layer.weight)
        matrix.mm(layer.weight)
        matrix.mm(layer.weight.t())
        matrix.mm(layer.weight.t())
    found["views of it"] = len(recorder.casts())
    return found


def memory() -> dict[str, int]:
    """Bytes that a weight of 4 MiB and its cast take."""
    layer = nn.Linear(1024, 1024, bias=False, device="cuda")
    line = torch.empty(1, 1024, device="cuda", dtype=torch.float16)
    layer(line.float())  # gives cuBLAS its workspace
    start = torch.cuda.memory_allocated()
    found = {}
    with torch.no_grad(), torch.autocast("cuda"):
        layer(line)
        found["in the region"] = torch.cuda.memory_allocated() - start
        with torch.autocast("cuda"):
            layer(line)
        found["after an inner region"] = torch.cuda.memory_allocated() - start
    found["after the region"] = torch.cuda.memory_allocated() - start
    return found


def custom_functions() -> dict[str, Any]:
    """Autograd functions that say how they are to be run under autocast."""
    found: dict[str, Any] = {}

    class Product(_Function):  # type: ignore[misc]
        @staticmethod
        @_amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
        def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        @_amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            a, b = ctx.saved_tensors
            found["backward"] = [torch.is_autocast_enabled("cuda"), told(grad @ b.t())]
            return grad @ b.t(), a.t() @ grad

    class Cast(_Function):  # type: ignore[misc]
        @staticmethod
        @_amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
        def forward(ctx: Any, a: torch.Tensor) -> torch.Tensor:
            found["cast_inputs"] = [torch.is_autocast_enabled("cuda"), told(a)]
            return a * 2

        @staticmethod
        @_amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
        def backward(ctx: Any, grad: torch.Tensor) -> Any:
            found["backward of cast_inputs"] = torch.is_autocast_enabled("cuda")
            return grad * 2

    a = torch.empty(4, 4, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = Product.apply(a, a)
        found["forward"] = told(out)
        twice = Cast.apply(out)
    twice.sum().backward()
    found["gradient"] = told(a.grad)
    return found


def checkpoints() -> dict[str, Any]:
    """Whether the second forward has the first one's dtype."""
    found: dict[str, Any] = {}
    for reentrant in (False, True):
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to("cuda")
        line = torch.empty(1, 4, device="cuda", requires_grad=True)
        with Recorder() as recorder:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                out = checkpoint.checkpoint(layers, line, use_reentrant=reentrant)
            first = len(recorder.rows)
            out.sum().backward()
        found[f"use_reentrant={reentrant}"] = [
            [row[3] for row in rows if row[0] == "aten.addmm.default"]
            for rows in (recorder.rows[:first], recorder.rows[first:])
        ]
    return found


def host() -> dict[str, Any]:
    """Tensors of the host are none of it."""
    matrix = torch.ones(2, 2)
    found: dict[str, Any] = {}
    with torch.autocast("cuda"):
        found["in cuda's region"] = [told(matrix @ matrix), torch.is_autocast_enabled("cpu")]
    with torch.autocast("cpu"):
        product = matrix @ matrix
        on_device = torch.empty(2, 2, device="cuda")
        found["in the host's"] = [told(product), product.tolist(), told(on_device @ on_device)]
    return found


def stands_for() -> dict[str, Any]:
    """A Python function in an operator's place."""
    seen: list[Any] = []

    @lower_precision
    def function(first: Any, second: Any = None, factor: float = 1.0) -> Any:
        seen.append([told(first), told(second), factor, torch.is_autocast_enabled(DEVICE_TYPE)])

    a = torch.empty(2, device="cuda")
    function(a, factor=2.0)
    with torch.autocast("cuda"):
        function(a, second=a)
        function(a.double(), second=a.bool(), factor=2.0)
    return {"seen": seen}


def scaler() -> dict[str, Any]:
    """Steps with a scaler, for each way that optimizers take them."""
    found: dict[str, Any] = {}
    optimizers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adamw": lambda parameters: torch.optim.AdamW(parameters),
        "for-loop": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
        "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    }
    for make_scaler in (torch.amp.GradScaler, torch.cuda.amp.GradScaler):
        for name, make in optimizers.items():
            for clips in (False, True):
                layer = nn.Linear(8, 8, device="cuda")
                optimizer, scaler = make(layer.parameters()), make_scaler()
                with Recorder() as recorder:
                    for _ in range(2):
                        with torch.autocast("cuda", dtype=torch.float16):
                            loss = layer(torch.empty(4, 8, device="cuda")).sum()
                        scaler.scale(loss).backward()
                        if clips:
                            scaler.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
                        scaler.step(optimizer)
                        scaler.update()
                names = [row[0] for row in recorder.rows]
                found[f"{make_scaler.__module__}, {name}, clips={clips}"] = {
                    "enabled": scaler.is_enabled(),
                    "scale": scaler.get_scale(),
                    "states": len(optimizer.state),
                    "checks": names.count(
                        "aten._amp_foreach_non_finite_check_and_unscale_.default"
                    ),
                    "updates": names.count("aten._amp_update_scale_.default"),
                    "gradients": [told(each.grad) for each in layer.parameters()],
                }
    return found


def simulated() -> dict[str, Any]:
    """What needs a whole simulation."""
    begin_simulation(card())
    install_autocast(DEVICE_TYPE)
    return {**regions(), "scaler": scaler()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(simulated()))
