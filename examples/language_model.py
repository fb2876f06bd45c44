"""Train a small Llama from scratch on the bytes of a play, with a hand-written loop."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from common import DEVICE, command_line, print_checksum, print_size, read_text


def build_model(seq: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=seq,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def get_batch(text: Tensor, batch: int, seq: int) -> Tensor:
    starts = torch.randint(len(text) - seq, (batch,)).tolist()
    return torch.stack([text[start : start + seq] for start in starts]).long()


def main() -> None:
    args = command_line(steps=10, batch=4, seq=128)
    torch.manual_seed(args.seed)
    text = read_text()
    model = build_model(args.seq).to(DEVICE)
    print_size(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 2, args.steps)

    model.train()
    for step in range(args.steps):
        tokens = get_batch(text, args.batch, args.seq).to(DEVICE)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        print(f"step {step} loss {loss.item()!r}", flush=True)

    if args.checksum:
        print_checksum(model)


if __name__ == "__main__":
    main()
