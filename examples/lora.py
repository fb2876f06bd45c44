"""Tune the same small Llama with LoRA: its own weights are frozen, small factors beside them train."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from common import DEVICE, command_line, print_checksum, read_text
from language_model import build_model, get_batch


def main() -> None:
    args = command_line(steps=10, batch=4, seq=128, rank=16)
    torch.manual_seed(args.seed)
    text = read_text()
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear")
    model = get_peft_model(build_model(args.seq), config).to(DEVICE)
    model.print_trainable_parameters()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)

    model.train()
    for step in range(args.steps):
        tokens = get_batch(text, args.batch, args.seq).to(DEVICE)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} loss {loss.item()!r}", flush=True)

    if args.checksum:
        print_checksum(model)


if __name__ == "__main__":
    main()
