"""The training behind one row of gradient_space_reuse.csv: `job.py ViT-S`, `job.py BLOOM-560M`.

Its AdamW is replaced by `memlens plan --optimizer`.
"""

from __future__ import annotations

import sys

import torch
from timm_shapes import make
from torch import nn
from torch.nn import functional as F

from memlens.models.build import build_model, compute_loss, make_batch

LANGUAGE = {"BLOOM-560M": "bloom-560m", "Qwen-0.5B": "qwen1.5-0.5b"}
TOKENS = 512


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


if __name__ == "__main__":
    name = sys.argv[1]
    (train_text if name in LANGUAGE else train_images)(name)
