"""Quantised layers of bitsandbytes on a simulated device: its CUDA kernels, not those of the CPU."""

from __future__ import annotations

import json

from tests.simulation.conftest import Simulate

from memlens.events import WeightKind

SIDE = 1024
JOB = """
    import json, time
    import bitsandbytes as bnb
    import torch
    from torch import nn

    def rise(call):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        return result, torch.cuda.max_memory_allocated() - before

    model = nn.Sequential(bnb.nn.LAYER, nn.Linear(1024, 8)).cuda()
    told = {"moved": torch.cuda.memory_allocated()}
    few = torch.randn(4, 1024, device="cuda", dtype=torch.DTYPE, requires_grad=True)
    many = torch.randn(4096, 1024, device="cuda", dtype=torch.DTYPE, requires_grad=True)
    few @ few.T  # cuBLAS has its workspace from here on
    model[0](few)
    _, told["few"] = rise(lambda: model[0](few))
    y, told["many"] = rise(lambda: model[0](many))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        model(few.float()).sum().backward()
        optimizer.step()
    y.sum().backward()
    assert many.grad.shape == many.shape
    print(json.dumps(told))
"""


def job(layer: str, dtype: str) -> str:
    return JOB.replace("LAYER", layer).replace("DTYPE", dtype)


def test_four_bits(simulate: Simulate) -> None:
    done = simulate(
        job("Linear4bit(1024, 1024, bias=False, compute_dtype=torch.bfloat16)", "bfloat16")
    )
    told = json.loads(done.output)
    # Two codes in a byte; a scale for each 64, quantised itself: a byte, a fp32 scale for each 256, a
    # table of 256 and an offset; a table of 16.
    scales = SIDE * SIDE // 64
    codes = SIDE * SIDE // 2 + scales + scales // 256 * 4 * 2 + 1024 + 512 + 512
    table = 1024  # which the library keeps, to copy from
    assert told["moved"] == codes + table + 8 * SIDE * 4 + 512
    # Few rows go through a kernel that reads the codes; for many, the weight is dequantised.
    assert told["few"] < SIDE * SIDE * 2
    assert told["many"] >= SIDE * SIDE * 2 + 4096 * SIDE * 2
    held = done.rank.weights_at()
    assert held[WeightKind.QUANTISED] == codes


def test_eight_bits(simulate: Simulate) -> None:
    done = simulate(job("Linear8bitLt(1024, 1024, bias=False, has_fp16_weights=False)", "float16"))
    told = json.loads(done.output)
    # A byte for each, and a fp32 scale for each row.
    assert told["moved"] == SIDE * SIDE + SIDE * 4 + 8 * SIDE * 4 + 512
    assert told["many"] >= 4096 * SIDE * (4 + 2)  # the product in int32, and what comes of it
