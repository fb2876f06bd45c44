"""Train a small Llama with Hugging Face Trainer, sharded as its command line says.

cd examples
torchrun --nproc-per-node 2 hf_sharded.py --bf16 --deepspeed configs/ds_zero3.json
torchrun --nproc-per-node 2 hf_sharded.py --fsdp --fsdp_config configs/fsdp2.json
"""

from __future__ import annotations

from typing import Any

from transformers import (
    HfArgumentParser,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from common import TextWindows
from language_model import build_model

SEQ = 128


class PrintLoss(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        latest = state.log_history[-1]
        if "loss" in latest and state.is_world_process_zero:
            loss, norm = latest["loss"], latest["grad_norm"]
            print(f"step {state.global_step - 1} loss {loss!r} grad_norm {norm!r}", flush=True)


def main() -> None:
    parser = HfArgumentParser(TrainingArguments)
    (training_args,) = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)  # before the model is made: all ranks start with the same weights
    trainer = Trainer(
        model=build_model(SEQ),
        args=training_args,
        train_dataset=TextWindows(SEQ),
        callbacks=[PrintLoss()],
    )
    trainer.remove_callback(PrinterCallback)  # it would print each loss a second time, rounded
    trainer.train()


if __name__ == "__main__":
    main()
