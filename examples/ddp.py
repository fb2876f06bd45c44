"""Train the same small Llama on several processes: torchrun --nproc-per-node 2 examples/ddp.py"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from common import DEVICE, TextWindows, command_line, print_checksum, print_size
from language_model import build_model


def main() -> None:
    args = command_line(steps=6, batch=2, seq=128)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    device = DEVICE
    if device.type == "cuda":  # with fewer GPUs than processes, some share one
        device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)

    windows = TextWindows(args.seq)
    sampler = DistributedSampler(windows, seed=args.seed)
    loader = DataLoader(windows, args.batch, sampler=sampler, drop_last=True)
    model = DistributedDataParallel(build_model(args.seq).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    if first:
        print_size(model)

    model.train()
    for step in range(args.steps):
        if step % len(loader) == 0:
            sampler.set_epoch(step // len(loader))
            batches = iter(loader)
        loss = model(**{name: tensor.to(device) for name, tensor in next(batches).items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if first:  # one process speaks for all, or the lines would mix
            print(f"step {step} loss {loss.item()!r}", flush=True)

    if first and args.checksum:
        print_checksum(model)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
