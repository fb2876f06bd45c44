"""What kernels ask of the card: how much of it there is to fill."""

from __future__ import annotations

import torch

__all__ = ["capability", "multiprocessors", "threads_per_multiprocessor"]


def multiprocessors() -> int:
    """Streaming multiprocessors."""
    return int(torch.cuda.get_device_properties(0).multi_processor_count)


def capability() -> tuple[int, int]:
    """Compute capability."""
    major, minor = torch.cuda.get_device_capability()
    return major, minor


def threads_per_multiprocessor() -> int:
    """Threads that one multiprocessor holds (CUDA programming guide, table of compute capabilities)."""
    version = capability()
    if version in ((8, 6), (8, 7), (8, 9)) or version[0] == 12:
        return 1536
    return 1024 if version == (7, 5) else 2048
