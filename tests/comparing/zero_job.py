"""A training script in the style of DeepSpeed's documentation, which test_sharded.py compares.

Its ds_config says stage 3, offloads parameters, and names the optimizer; the model is built for stage 3.
"""

from __future__ import annotations

import argparse

import deepspeed
import deepspeed.ops
import torch
from torch import nn

# Communication over shared memory would be compiled here; gloo does without.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

WIDTH, LAYERS = 256, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--steps", type=int, default=3)
    parser = deepspeed.add_config_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    deepspeed.init_distributed("gloo")
    with deepspeed.zero.Init(config_dict_or_path=args.deepspeed_config):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    engine, *_ = deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    for _ in range(args.steps):
        x = torch.randn(2, WIDTH, generator=generator).to(torch.bfloat16)
        loss = (engine(x) - x).float().square().mean()
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    main()
