"""The training behind one row of gradient_space_reuse.csv: `job.py ViT-S`, `job.py BLOOM-560M --zero`.

Its AdamW is replaced by `memlens plan --optimizer`.
"""

from __future__ import annotations

import sys

import torch
from timm_shapes import make
from torch import nn
from torch.nn import functional as F

from memlens.models.build import build_model, compute_loss, make_batch

LANGUAGE = {
    "BLOOM-560M": "bloom-560m",
    "Qwen-0.5B": "qwen1.5-0.5b",
    "LLaMA-2-7B": "llama-2-7b",
    "Gemma-2B": "gemma-2b",
}
TOKENS = 512
ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}
"""All else as DeepSpeed has it by default."""


def train_images(name: str) -> None:
    model = make(name).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        output = model(torch.randn(1, 3, 224, 224).cuda())
        if output.shape[-1] == 1000:
            loss = F.cross_entropy(output, torch.zeros(1, dtype=torch.long).cuda())
        else:  # timm gives this one no head
            loss = output.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_text(name: str) -> None:
    torch.distributed.init_process_group("nccl")
    model: nn.Module = build_model(LANGUAGE[name], device="cuda")
    model = nn.parallel.DistributedDataParallel(model, device_ids=[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss = compute_loss(model, make_batch(LANGUAGE[name], 1, TOKENS, device="cuda"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_zero(name: str) -> None:
    import deepspeed

    deepspeed.init_distributed()
    model: nn.Module = build_model(LANGUAGE[name], dtype=torch.bfloat16, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=ZERO)[0]
    del model, optimizer
    # The DeepSpeed of the time flattened weights on the host, and so left no room for them in the
    # allocator's cache.
    torch.cuda.empty_cache()
    for _ in range(3):
        batch = make_batch(LANGUAGE[name], 1, TOKENS, device="cuda")
        engine.backward(compute_loss(engine, batch))
        engine.step()


if __name__ == "__main__":
    name = sys.argv[1]
    if "--zero" in sys.argv:
        train_zero(name)
    elif name in LANGUAGE:
        train_text(name)
    else:
        train_images(name)
