"""An FSDP2 script as people have it, started by torchrun under `memlens run`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.jobs import ours, run_memlens, run_plain, write_script
from tests.support.training import assert_adds_up

import memlens
from memlens import Category

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

torch.manual_seed(0)
torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
model = nn.Transformer(33, 3, 1, 1, 65, batch_first=True)
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for layer in (*model.encoder.layers, *model.decoder.layers):
    fully_shard(layer, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for step in range(3):
    batch = torch.randn(2, 5, 33)
    loss = model(batch, batch).float().square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step < 2:
        optimizer.zero_grad()
    losses.append(loss.item())
os.write(1, f"rank {dist.get_rank()} {losses}\\n".encode())
if dist.get_rank() == 0:
    shapes = [tuple(value.shape) for value in model.parameters()]
    os.write(1, f"shapes {shapes}\\n".encode())
dist.barrier()
dist.destroy_process_group()
"""
WORDS = ("torchrun", "--standalone", "--nproc-per-node", "2", "train.py")


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    write_script(tmp_path / "train.py", SCRIPT)
    plain = run_plain(*WORDS, cwd=tmp_path, timeout=300)
    job = run_memlens("run", "--out", "run", "--", *WORDS, cwd=tmp_path, timeout=300)
    assert plain.returncode == job.returncode == 0, plain.stderr + job.stderr
    assert sorted(job.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    assert len(ours(job.stderr)) == 1  # where the capture is

    shapes = next(line for line in job.stdout.splitlines() if line.startswith("shapes "))
    elements = 0
    for rows, *rest in eval(shapes.removeprefix("shapes ")):
        elements += -(-rows // 2) * (rest[0] if rest else 1)
    capture = memlens.load(tmp_path / "run")
    assert [rank.rank for rank in capture.ranks] == [0, 1]
    for rank in capture.ranks:
        assert rank.coverage.problems == ()
        assert_adds_up(rank)
        peak = rank.peak()
        assert peak.categories[Category.UNKNOWN] * 100 < peak.allocated_bytes
        end = rank.categories_at(int(rank.timeline().time_ns[-1]))
        assert end[Category.WEIGHT] == 4 * elements
        assert end[Category.GRADIENT] == 4 * elements
        names = {row["name"] for row in rank.to_arrow().to_pylist()}
        assert "all-gathered encoder.layers.0.linear1.weight" in names
        assert "reduce-scatter buffer of decoder.layers.0" in names
