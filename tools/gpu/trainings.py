"""The trainings of tools/gpu_check.py: small, and each over something that a profiler may trip on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memlens.models.build import build_model, make_batch
from memlens.models.shape import ModelShape
from memlens.models.table import find_model

__all__ = ["TRAININGS", "Readings", "Size", "adamw", "llama_shape"]

Optimizer = Callable[[nn.Module], Any]
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Size:
    """Where a training runs, and for how long."""

    device: str
    steps: int

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def pick(self, on_cuda: int, elsewhere: int) -> int:
        return on_cuda if self.is_cuda else elsewhere


@dataclass
class Readings:
    """What torch's own counters say, as the job reads them."""

    is_cuda: bool
    steps: int = 0
    """How often `optimizer.step()` has returned."""
    allocated_bytes: list[int] = field(default_factory=list)
    """Right after each of these; empty on the CPU, whose allocator counts nothing."""
    losses: list[Tensor] = field(default_factory=list)

    def read(self) -> None:
        self.steps += 1
        if self.is_cuda:
            self.allocated_bytes.append(torch.cuda.memory_allocated())

    def watch(self, optimizer: Any) -> Any:
        """Read whenever a step of this optimizer has returned, also one that a scaler calls."""
        step = optimizer.step

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.read()
            return result

        optimizer.step = counted
        return optimizer

    def keep(self, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = {"steps": self.steps, "allocated_bytes": self.allocated_bytes}
        if self.is_cuda:
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            found["reserved_peak_bytes"] = torch.cuda.max_memory_reserved()
        return found


Training = Callable[[Size, Readings], nn.Module]


# -- optimizers ------------------------------------------------------------------------------------


def adamw(model: nn.Module, **options: Any) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, **options)


def adafactor(model: nn.Module) -> Any:
    return torch.optim.Adafactor(model.parameters(), lr=1e-3)


def adamw_r(model: nn.Module) -> Any:
    from memlens.optim import AdamWR

    return AdamWR(model.parameters(), lr=1e-4)


def bitsandbytes(name: str, model: nn.Module) -> Any:
    return getattr(import_module("bitsandbytes.optim"), name)(model.parameters(), lr=1e-4)


def galore(model: nn.Module) -> Any:
    library = import_module("galore_torch")
    hidden = {id(p) for name, p in model.named_parameters() if "layers." in name and p.dim() == 2}
    projection = {"rank": 16, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in hidden]},
        {"params": [p for p in model.parameters() if id(p) in hidden], **projection},
    ]
    return library.GaLoreAdamW(groups, lr=1e-4)


# -- language models -------------------------------------------------------------------------------


def llama_shape(size: Size) -> ModelShape:
    """The smallest Llama of the table; on the CPU one that is smaller still."""
    shape = find_model("llama-60m")
    if size.is_cuda:
        return shape
    small = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 172}
    small |= {"num_hidden_layers": 3, "num_attention_heads": 4}
    return replace(shape, config={**shape.config, **small})


def language_model(
    size: Size,
    readings: Readings,
    *,
    optimizer: Optimizer = adamw,
    checkpointing: bool = False,
    micro_batches: int = 1,
    dtype: torch.dtype | None = None,
    scaled: bool = False,
) -> nn.Module:
    shape = llama_shape(size)
    model = build_model(shape, device=size.device, checkpointing=checkpointing)
    chosen = readings.watch(optimizer(model))
    context: Context = nullcontext if dtype is None else partial(torch.autocast, size.device, dtype)
    # From 2^16 on the first steps would overflow, and be left out.
    scaler = torch.amp.GradScaler(size.device, init_scale=256.0, enabled=scaled)
    samples, tokens = size.pick(8, 4), size.pick(512, 64)
    for _ in range(size.steps):
        for _ in range(micro_batches):
            batch = make_batch(shape, samples, tokens, device=size.device)
            with context():
                loss = model(**batch).loss
            scaler.scale(loss / micro_batches).backward()
        scaler.unscale_(chosen)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(chosen)
        scaler.update()
        chosen.zero_grad()
        readings.keep(loss)
    return model


# -- others ----------------------------------------------------------------------------------------


def convolutions() -> nn.Sequential:
    """Three resolutions, with batch norm."""
    layers: list[nn.Module] = []
    for before, width, stride in ((3, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers.append(nn.Conv2d(before, width, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def vision(size: Size, readings: Readings, *, benchmark: bool = False) -> nn.Module:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark
    samples, pixels = size.pick(64, 8), size.pick(64, 16)
    model = convolutions().to(size.device)
    optimizer = readings.watch(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    for _ in range(size.steps):
        pictures = torch.randn(samples, 3, pixels, pixels).to(size.device)
        labels = torch.randint(10, (samples,)).to(size.device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        readings.keep(loss)
    torch.backends.cudnn.benchmark = before
    return model


def perceptron(size: Size) -> nn.Sequential:
    width = size.pick(1024, 64)
    layers = [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width)]
    return nn.Sequential(*layers).to(size.device)


def perceptron_batch(size: Size) -> Tensor:
    return torch.randn(256, size.pick(1024, 64), device=size.device)


def compiled(size: Size, readings: Readings) -> nn.Module:
    model = perceptron(size)
    fast = torch.compile(model)
    optimizer = readings.watch(adamw(model))
    for _ in range(size.steps):
        loss = fast(perceptron_batch(size)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        readings.keep(loss)
    return model


def two_streams(size: Size, readings: Readings) -> nn.Module:
    """Batches are made on a second stream, and outputs read there: both are freed while in use."""
    model = perceptron(size)
    optimizer = readings.watch(adamw(model))
    side = torch.cuda.Stream()
    for _ in range(size.steps):
        main = torch.cuda.current_stream()
        with torch.cuda.stream(side):
            batch = perceptron_batch(size)
        main.wait_stream(side)
        batch.record_stream(main)
        output = model(batch)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            copied = output.detach().clone()
            for _ in range(20):
                copied = copied * 1.01
        output.record_stream(side)
        loss = output.square().mean()
        del batch, output, copied
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        readings.keep(loss)
    return model


def graphed_model(size: Size, readings: Readings) -> nn.Module:
    """Forward and backward are replayed, the rest is not."""
    model = perceptron(size)
    graphed = torch.cuda.make_graphed_callables(model, (perceptron_batch(size),))
    optimizer = readings.watch(adamw(model))
    for _ in range(size.steps):
        loss = graphed(perceptron_batch(size)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        readings.keep(loss)
    return model


def graphed_step(size: Size, readings: Readings) -> nn.Module:
    """The whole step is one graph, as in torch's notes on CUDA graphs."""
    model = perceptron(size)
    optimizer = readings.watch(adamw(model, capturable=True))
    batch = perceptron_batch(size)

    def step() -> Tensor:
        loss: Tensor = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(size.steps):
        batch.copy_(perceptron_batch(size))
        graph.replay()
        readings.keep(loss.clone())
    return model


def sharded(size: Size, readings: Readings, *, name: str, **options: Any) -> nn.Module:
    """One of gpu/sharded.py, which builds on this file."""
    training: Callable[..., nn.Module] = getattr(import_module("gpu.sharded"), name)
    return training(size, readings, **options)


TRAININGS: dict[str, Training] = {
    "language-model": language_model,
    "vision": vision,
    "vision-benchmark": partial(vision, benchmark=True),
    "accumulation": partial(language_model, micro_batches=4),
    "checkpointing": partial(language_model, checkpointing=True),
    "autocast-bf16": partial(language_model, dtype=torch.bfloat16),
    "scaler-fp16": partial(language_model, dtype=torch.float16, scaled=True),
    "fused-adamw": partial(language_model, optimizer=partial(adamw, fused=True)),
    "two-streams": two_streams,
    "graphed-model": graphed_model,
    "graphed-step": graphed_step,
    "compile": compiled,
    "fsdp2": partial(sharded, name="fully_sharded"),
    "zero-2": partial(sharded, name="deepspeed", stage=2),
    "zero-3": partial(sharded, name="deepspeed", stage=3),
    "adamw-r": partial(language_model, optimizer=adamw_r),
    "adafactor": partial(language_model, optimizer=adafactor),
    "galore": partial(language_model, optimizer=galore),
    "adamw8bit": partial(language_model, optimizer=partial(bitsandbytes, "AdamW8bit")),
    "paged-adamw8bit": partial(language_model, optimizer=partial(bitsandbytes, "PagedAdamW8bit")),
}
"""Name to training. Each reads the allocator's counters after every step of its optimizer."""
