"""An ordinary script's questions to torch, asked in a simulated process; prints one line per answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

ANSWERS: dict[str, Any] = {}


def say(name: str, ask: Callable[[], Any]) -> None:
    try:
        answer = ask()
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    ANSWERS[name] = answer if isinstance(answer, (int, float, list, dict, bool)) else str(answer)


def devices() -> None:
    small, large = torch.randn(3), torch.randn(1000, 1000)
    say("available", torch.cuda.is_available)
    say("devices", torch.cuda.device_count)
    say("name", torch.cuda.get_device_name)
    say("total", lambda: torch.cuda.get_device_properties(0).total_memory)
    say("capability", lambda: list(torch.cuda.get_device_capability()))
    say("accelerator", lambda: torch.accelerator.current_accelerator())
    for name, make in (
        ("factory", lambda: torch.zeros(3, device="cuda")),
        ("tensor", lambda: torch.tensor([1, 2], device="cuda:0")),
        ("cuda()", lambda: small.cuda()),
        ("to text", lambda: large.to("cuda")),
        ("to device", lambda: large.to(torch.device("cuda", 0), torch.float16)),
        ("to number", lambda: small.to(0)),
        ("to other", lambda: small.to(torch.zeros(1, device="cuda"))),
        ("new", lambda: small.cuda().new_zeros(2)),
        ("like", lambda: torch.empty_like(small.cuda())),
        ("view", lambda: large.cuda()[3:].t()),
        ("generator", lambda: torch.rand(2, device="cuda", generator=torch.Generator("cuda"))),
        ("legacy", lambda: torch.FloatTensor([1.0]).cuda(non_blocking=True)),
    ):
        say(f"device of {name}", lambda make=make: make().device)  # type: ignore[misc]
    say("device of host", lambda: large.device)
    say("is_cuda", lambda: [large.cuda().is_cuda, large.is_cuda, large.cuda().is_cpu])
    say("type", lambda: small.cuda().type())
    with torch.device("cuda"):
        say("device in context", lambda: torch.ones(2).device)
    torch.set_default_device("cuda")
    say("device by default", lambda: torch.ones(2).device)
    torch.set_default_device("cpu")


def addresses() -> None:
    x = torch.zeros(1000, 1000, device="cuda")
    y = torch.zeros(1000, 1000, device="cuda")
    say("views share", lambda: x[1].data_ptr() - x.data_ptr())
    say("others do not", lambda: x.data_ptr() != y.data_ptr() and x.data_ptr() > 0)
    say("storage", lambda: x.untyped_storage().data_ptr() == x.data_ptr())
    before = torch.cuda.memory_allocated()
    z = x + y
    say("4 MB", lambda: torch.cuda.memory_allocated() - before)
    del z
    say("back", lambda: torch.cuda.memory_allocated() - before)
    say("reserved", lambda: torch.cuda.memory_reserved() >= torch.cuda.memory_allocated())
    say("free", lambda: sum(torch.cuda.mem_get_info()) > torch.cuda.mem_get_info()[1])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    say("peak", lambda: torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated())


def values() -> None:
    mask = torch.tensor([True, False, True], device="cuda")
    unknown = torch.randn(4, 4, device="cuda")
    say("known all", lambda: mask.all().item())
    say("known sum", lambda: mask.sum().item())
    say("known index", lambda: list(unknown[:3][mask].shape))
    say("known nonzero", lambda: list(mask.nonzero().shape))
    say("known list", lambda: (torch.arange(4, device="cuda") * 2).tolist())
    say("known copy", lambda: mask.cpu().tolist())
    other = mask.clone()
    other.logical_not_()
    say("known in place", lambda: [other.tolist(), mask.tolist()])
    view = mask[1:]
    view.fill_(True)
    say("known through a view", lambda: mask.tolist())
    mask.copy_(unknown[0, :3] > 0)
    say("overwritten", lambda: mask.any().item())
    say("loss", lambda: unknown.sum().item())
    say("condition", lambda: bool(unknown.sum() > 0))
    say("count", lambda: (unknown > 0).sum().item())
    say("count + 1", lambda: (unknown > 0).sum().item() + 1)
    say("mean", lambda: 10 / (unknown > 0).sum().item())
    say("mean of tensor", lambda: list((unknown / (unknown > 0).sum().item()).shape))
    count: Any = (unknown > 0).sum().item()
    say("shape from a count", lambda: list(range(count)))
    say("unknown index", lambda: unknown[unknown > 0].shape)
    say("unknown unique", lambda: torch.unique(unknown))
    say("host values", lambda: torch.arange(3).numpy().tolist())
    say("numpy of the device", lambda: unknown.numpy())
    say("numpy of much", lambda: torch.ones(1000, 1000).numpy())
    say("graph", torch.cuda.CUDAGraph)
    sample = (torch.randn(4, 8, device="cuda"),)
    say("graphed", lambda: torch.cuda.make_graphed_callables(torch.nn.Linear(8, 8).cuda(), sample))


def modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1000), nn.BatchNorm1d(1000))
    tied = nn.Linear(4, 4)
    tied.weight = model[0].weight  # type: ignore[assignment]
    first = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model.cuda()
    say("identity", lambda: first is model[0].weight and isinstance(first, nn.Parameter))
    say("tied", lambda: tied.weight is first and tied.weight.device.type == "cuda")
    say("of optimizer", lambda: optimizer.param_groups[0]["params"][0] is first)
    say("buffers", lambda: model[2].running_mean.device)
    say("half", lambda: copy.deepcopy(model).half()[0].weight.dtype)
    x = torch.randn(8, 4).cuda()
    F.cross_entropy(model(x), torch.zeros(8, dtype=torch.long).cuda()).backward()
    say("gradient", lambda: first.grad is not None and first.grad.device)
    say("clip", lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0).device)
    optimizer.step()
    say("state", lambda: next(iter(optimizer.state.values()))["exp_avg"].device)
    say("state dict", lambda: model.state_dict()["0.weight"].device)
    model.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    say("compile", lambda: torch.compile(model)(x).device)
    say("cpu again", lambda: model.cpu()[1].weight.device)
    torch.save(model.state_dict(), "/nowhere/at/all.pt")


def ordinary_things() -> None:
    data = TensorDataset(torch.randn(100, 3, 64, 64), torch.arange(100))
    loader = DataLoader(data, 32, shuffle=True, num_workers=2, pin_memory=True, prefetch_factor=2)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.cuda(non_blocking=True), labels.to("cuda")

    say("batches", lambda: [list(images.shape) for images, _ in batches()])
    say(
        "labels",
        lambda: (
            sorted(label for _, labels in batches() for label in labels.tolist())
            == list(range(100))
        ),
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        say("stream", lambda: torch.cuda.current_stream() == stream)
        y = torch.zeros(3, device="cuda")
    y.record_stream(torch.cuda.current_stream())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    end.record()
    torch.cuda.synchronize()
    say("elapsed", lambda: start.elapsed_time(end) > 0)
    layer = nn.Linear(4, 4).cuda()
    x = torch.randn(2, 4, device="cuda", requires_grad=True)
    for name, reentrant in (("new", False), ("old", True)):
        result = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
        say(f"checkpoint {name}", lambda result=result: result.sum().backward())  # type: ignore[misc]
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.autocast("cuda", dtype=torch.float16):
        result = layer(x)
        loss = F.mse_loss(result, torch.zeros_like(result))
    say("autocast", lambda: [str(result.dtype), str(loss.dtype)])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    say("scaled step", lambda: scaler.step(optimizer))
    scaler.update()
    dropped = F.dropout(x, 0.5)
    say("dropout", lambda: type(dropped.grad_fn).__name__)
    attention = nn.MultiheadAttention(64, 4, batch_first=True).cuda()
    q = torch.randn(2, 10, 64, device="cuda")
    say("attention", lambda: list(attention(q, q, q, need_weights=False)[0].shape))


if __name__ == "__main__":
    for part in (devices, addresses, values, modules, ordinary_things):
        part()
    print(json.dumps(ANSWERS))
