"""What keeps DeepSpeed from some of its work on CPUs, and need not."""

from __future__ import annotations

import deepspeed
import deepspeed.ops
from deepspeed.accelerator import get_accelerator

__all__ = ["do_without_a_compiler_and_allow_fp16"]


def do_without_a_compiler_and_allow_fp16() -> None:
    """To be called before anything of DeepSpeed's is used."""
    # Communication over shared memory would be compiled; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It asks for processors that are fast in fp16; any can compute in it.
    type(get_accelerator()).is_fp16_supported = lambda _: True
