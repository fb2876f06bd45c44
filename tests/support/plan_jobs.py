"""Small scripts that say `cuda`, for `memlens plan` and its kin."""

from __future__ import annotations

__all__ = ["NO_WORKSPACE", "TINY", "WITHOUT_CUDA"]

NO_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":0:0", "CUBLASLT_WORKSPACE_SIZE": "0"}
"""Environment in which libraries take nothing, so that all sizes below are those of tensors."""

TINY = """
import sys
import torch

samples = int(sys.argv[1]) if len(sys.argv) > 1 else 8
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(5)))
model.to("cuda")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(100):
    x = torch.randn(samples, 1024, device="cuda")
    loss = model(x).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""
"""Five matrices of 4 MiB, which fill a segment, and AdamW; the first argument is the batch."""

WITHOUT_CUDA = """
import torch

model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
for step in range(3):
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
"""
