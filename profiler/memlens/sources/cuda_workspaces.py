"""How large the workspaces are that torch gives to cuBLAS and cuBLASLt."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["default_workspace_bytes", "lt_workspace_bytes", "workspace_bytes"]

# parseChosenWorkspaceSize and _parseChosenWorkspaceSize in aten/src/ATen/cuda/CublasHandlePool.cpp: one
# workspace per handle and stream, taken from the caching allocator at the first matrix product, and kept.
HOPPER_BYTES = 4096 * 8 * 1024
OTHER_BYTES = (4096 * 2 + 16 * 8) * 1024
# parseCUDABlasLtWorkspaceSize: another one per handle and stream, at the first product with a bias. Seen
# on an H200 with torch 2.11; releases in which it is part of cuBLAS's own take 1 MiB less.
LT_KIB = 1024


def workspace_bytes(environment: Mapping[str, str]) -> list[int]:
    """Sizes of requests that are for a workspace.

    Args:
        environment: the job's variables; `CUBLAS_WORKSPACE_CONFIG` (`:KiB:count`, repeated) takes the
            place of the defaults.
    """
    sizes = {HOPPER_BYTES, OTHER_BYTES}
    pairs = re.findall(r":([0-9]+):([0-9]+)", environment.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if pairs:
        total = sum(int(size) * int(count) for size, count in pairs) * 1024
        # Older releases did not multiply by the count.
        sizes = {total, sum(int(size) for size, _ in pairs) * 1024}
    return sorted(sizes - {0})


def lt_workspace_bytes(environment: Mapping[str, str]) -> int:
    """Size of the request for cuBLASLt's workspace; 0: it uses that of cuBLAS.

    Args:
        environment: the job's variables; `CUBLASLT_WORKSPACE_SIZE` (KiB) takes the place of the default.
    """
    if environment.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE") == "1":
        return 0
    kib = environment.get("CUBLASLT_WORKSPACE_SIZE", "")
    return 1024 * (int(kib) if kib.isdecimal() else LT_KIB)


def default_workspace_bytes(environment: Mapping[str, str], capability: tuple[int, int]) -> int:
    """How large the workspace of one stream is, on a card of some compute capability."""
    pairs = re.findall(r":([0-9]+):([0-9]+)", environment.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if pairs:
        return sum(int(size) * int(count) for size, count in pairs) * 1024
    return HOPPER_BYTES if capability[0] in (9, 10) else OTHER_BYTES
