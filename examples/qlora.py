"""Tune the same small Llama with QLoRA: linear layers in 4 bits, LoRA beside them, 8-bit AdamW."""

from __future__ import annotations

import tempfile

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from common import DEVICE, command_line, print_checksum, read_text
from language_model import build_model, get_batch


def load_quantised(seq: int) -> LlamaForCausalLM:
    """Quantised on loading, as one does with a model from a hub; this one comes from a folder."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as folder:
        build_model(seq).save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=config, device_map={"": str(DEVICE)}
        )


def main() -> None:
    args = command_line(steps=10, batch=4, seq=128, rank=16)
    torch.manual_seed(args.seed)
    text = read_text()
    model = prepare_model_for_kbit_training(
        load_quantised(args.seq), use_gradient_checkpointing=False
    )
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear")
    model = get_peft_model(model, config)
    model.print_trainable_parameters()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = bnb.optim.AdamW8bit(trainable, lr=1e-2)

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
