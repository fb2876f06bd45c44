"""Train a small Llama with Accelerate, sharded as its configuration says.

cd examples; accelerate launch --config_file configs/accelerate_fsdp2.yaml accelerate_sharded.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from common import TextWindows, command_line
from language_model import build_model


def main() -> None:
    args = command_line(steps=4, batch=2, seq=128)
    accelerator = Accelerator()
    set_seed(args.seed)

    model = build_model(args.seq)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = get_linear_schedule_with_warmup(
        optimizer, 2, args.steps * accelerator.num_processes
    )
    dataloader = DataLoader(TextWindows(args.seq), args.batch, shuffle=True)
    model, optimizer, dataloader, scheduler = accelerator.prepare(
        model, optimizer, dataloader, scheduler
    )

    model.train()
    for step, batch in enumerate(dataloader):
        if step == args.steps:
            break
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        accelerator.print(f"step {step} loss {loss.item()!r}", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
