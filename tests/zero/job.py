"""Trains one small model under DeepSpeed in several configurations, each on several processes of its own.

    python job.py RANKS OUT stage3-bf16 stage2-fp32-accumulate ...

Each is trained twice, without memlens and with it. Writes `OUT/<configuration>.<rank>`, a run of a rank,
and beside it `.json` (losses, and when what happened) and `.plain.json`, the same without memlens.

Processes are forked from one that has imported everything, as that takes longer than all that they do.
They end after one training, as DeepSpeed never lets go of some of what it has made.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import deepspeed
import torch
from tests.support.deepspeed_on_cpu import do_without_a_compiler_and_allow_fp16
from tests.zero.configurations import INPUTS, OUTPUTS, STEPS, Model, groups_of, settings
from torch import nn

import memlens
from memlens_integrations.deepspeed.private import READS, Read

# What would be imported late, by each process.
for late in ("zero.stage3", "zero.muon.muon_optimizer", "bf16_optimizer", "fp16.unfused_optimizer"):
    with suppress(ImportError):
        importlib.import_module(f"deepspeed.runtime.{late}")
importlib.import_module("torch._dynamo")
do_without_a_compiler_and_allow_fp16()

PATIENCE_S = 120
PAUSE_S = 0.1
"""A thread of gloo's may hold what it has reduced for a little longer."""


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer | None:
    """The client's optimizer; None if the ds_config has one."""
    traits = name.split("-")
    if "config" in traits:
        return None
    if "adamw8bit" in traits:
        quantised: Any = importlib.import_module("bitsandbytes.optim")
        made: torch.optim.Optimizer = quantised.AdamW8bit(groups_of(model), lr=0.01)
        return made
    if "adamwr" in traits:
        from memlens.optim import AdamWR

        return AdamWR(groups_of(model), lr=0.01)
    return torch.optim.AdamW(groups_of(model), lr=0.01)


def make_engine(name: str) -> Any:
    """DeepSpeed's own, of a configuration."""
    torch.manual_seed(0)
    # Within this, parameters are partitioned as soon as their modules are made.
    partitioned = "init" in name.split("-")
    init = deepspeed.zero.Init(config_dict_or_path=settings(name)) if partitioned else nullcontext()
    with init:
        model = Model()
    optimizer = make_optimizer(name, model)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups_of(model) if optimizer is None else None,
        optimizer=optimizer,
        config=settings(name),
    )
    return engine


def train(engine: Any, config: dict[str, Any]) -> tuple[list[float], dict[str, list[int]]]:
    """Losses, and the times at which forwards, backwards and steps had ended."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = next((dtypes[name] for name in dtypes if config[name]["enabled"]), torch.float32)
    random = torch.Generator().manual_seed(1 + torch.distributed.get_rank())
    losses = []
    times: dict[str, list[int]] = {"forward": [], "backward": [], "step": []}
    for _ in range(STEPS * config["gradient_accumulation_steps"]):
        x = torch.randn(4, INPUTS, generator=random).to(dtype)
        target = torch.randn(4, OUTPUTS, generator=random)
        loss = nn.functional.mse_loss(engine(x).float(), target)
        times["forward"].append(time.time_ns())
        engine.backward(loss)
        time.sleep(PAUSE_S)
        times["backward"].append(time.time_ns())
        engine.step()
        time.sleep(PAUSE_S)
        times["step"].append(time.time_ns())
        losses.append(loss.item())
    return losses, times


def run_rank(rank: int, ranks: int, port: int, out: Path, name: str, *, recorded: bool) -> None:
    """One process of one training."""
    signal.alarm(PATIENCE_S)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    if "missing" in name.split("-"):
        READS["flat"]["averaged_gradients"] = Read(("gone",), None, "as in a version to come")
    session = (
        memlens.profile(out=out / f"{name}.{rank}", stacks=False) if recorded else nullcontext()
    )
    engine = make_engine(name) if "late" in name.split("-") else None
    with session:
        losses, times = train(engine or make_engine(name), settings(name))
    kind = "json" if recorded else "plain.json"
    (out / f"{name}.{rank}.{kind}").write_text(
        json.dumps({"losses": losses, "times": times, "version": deepspeed.__version__})
    )


def run(ranks: int, out: Path, name: str, *, recorded: bool) -> None:
    """Fork the processes of one training, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run_rank(rank, ranks, port, out, name, recorded=recorded)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise SystemExit(f"{name}: {len(failed)} of {ranks} processes failed")


def main() -> None:
    ranks, out = int(sys.argv[1]), Path(sys.argv[2])
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage now and then, which is slow with all that was imported
    for name in sys.argv[3:]:
        for recorded in (False, True):
            run(ranks, out, name, recorded=recorded)


if __name__ == "__main__":
    main()
