"""Train the same small Llama with the Trainer of Hugging Face Transformers."""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from common import DEVICE, TextWindows, command_line, print_checksum, print_size
from language_model import build_model


class PrintLoss(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        latest = state.log_history[-1]
        if "loss" in latest:
            print(f"step {state.global_step - 1} loss {latest['loss']!r}", flush=True)


def main() -> None:
    args = command_line(steps=10, batch=4, seq=128)
    set_seed(args.seed)

    model = build_model(args.seq)
    print_size(model)
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output,
                max_steps=args.steps,
                per_device_train_batch_size=args.batch,
                learning_rate=1e-3,
                lr_scheduler_type="cosine",
                warmup_steps=2,
                weight_decay=0.1,
                seed=args.seed,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=DEVICE.type == "cpu",
            ),
            train_dataset=TextWindows(args.seq),
            callbacks=[PrintLoss()],
        )
        trainer.remove_callback(PrinterCallback)  # it would print each loss a second time, rounded
        trainer.train()

    if args.checksum:
        print_checksum(model)


if __name__ == "__main__":
    main()
