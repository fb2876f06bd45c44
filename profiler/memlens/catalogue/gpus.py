"""Cards by name, and how much of their memory a training can use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from memlens.errors import UsageError
from memlens.units import format_bytes, parse_bytes

__all__ = ["CONTEXT_BYTES", "GPUS", "Gpu", "find_gpu"]

_GIB = 1 << 30

CONTEXT_BYTES = 512 << 20
"""CUDA context, and library handles: outside PyTorch's allocator. 300 to 600 MiB are usual."""


@dataclass(frozen=True)
class Gpu:
    """One card."""

    name: str
    total_bytes: int
    """As its vendor states it; drivers report up to 2 % less."""
    source: str = ""

    @property
    def usable_bytes(self) -> int:
        """What is left for tensors."""
        return self.total_bytes - CONTEXT_BYTES


_NVIDIA = "NVIDIA's data sheet"
_AMD = "AMD's data sheet"

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 16 * _GIB, _NVIDIA),
        Gpu("V100 16GB", 16 * _GIB, _NVIDIA),
        Gpu("V100 32GB", 32 * _GIB, _NVIDIA),
        Gpu("RTX 3060", 12 * _GIB, _NVIDIA),
        Gpu("RTX 3090", 24 * _GIB, _NVIDIA),
        Gpu("RTX 4060 Ti 16GB", 16 * _GIB, _NVIDIA),
        Gpu("RTX 4070", 12 * _GIB, _NVIDIA),
        Gpu("RTX 4080", 16 * _GIB, _NVIDIA),
        Gpu("RTX 4090", 24 * _GIB, _NVIDIA),
        Gpu("RTX 5080", 16 * _GIB, _NVIDIA),
        Gpu("RTX 5090", 32 * _GIB, _NVIDIA),
        Gpu("RTX A6000", 48 * _GIB, _NVIDIA),
        Gpu("RTX 6000 Ada", 48 * _GIB, _NVIDIA),
        Gpu("A10", 24 * _GIB, _NVIDIA),
        Gpu("A40", 48 * _GIB, _NVIDIA),
        Gpu("L4", 24 * _GIB, _NVIDIA),
        Gpu("L40S", 48 * _GIB, _NVIDIA),
        Gpu("A100 40GB", 40 * _GIB, _NVIDIA),
        Gpu("A100 80GB", 80 * _GIB, _NVIDIA),
        Gpu("H100 80GB", 80 * _GIB, _NVIDIA),
        Gpu("H100 NVL", 94 * _GIB, _NVIDIA),
        Gpu("H200", 141 * 10**9, _NVIDIA),
        Gpu("B200", 180 * 10**9, _NVIDIA),
        Gpu("MI250X", 128 * _GIB, _AMD),
        Gpu("MI300X", 192 * _GIB, _AMD),
        Gpu("MI325X", 256 * _GIB, _AMD),
    )
}


def find_gpu(text: str) -> Gpu:
    """A card by its name, however it is written, or a size such as `24GB` as a card of that size.

    Raises:
        UsageError: it is neither; the text names those that look alike. Or it has no room for tensors.
    """
    # First: there is one card whose name has 40GB in it, but a size is a size.
    if re.match(r"\s*\d+(\.\d+)?\s*[KMGT]i?B\s*$", text, re.IGNORECASE):
        gpu = Gpu(text.strip(), parse_bytes(text))
        if gpu.usable_bytes <= 0:
            raise UsageError(
                f"a card of {gpu.name} is too small: CUDA itself takes some "
                f"{format_bytes(CONTEXT_BYTES)} of it"
            )
        return gpu
    wanted = _key(text)
    for name, gpu in GPUS.items():
        if _key(name) == wanted:
            return gpu
    alike = [name for name in GPUS if wanted and _key(name).startswith(wanted)]
    alike = alike or [name for name in GPUS if len(wanted) > 2 and wanted in _key(name)]
    if len(alike) == 1:
        return GPUS[alike[0]]
    keys = {_key(name): name for name in GPUS}
    close = alike or [keys[key] for key in get_close_matches(wanted, keys, n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(GPUS)}"
    raise UsageError(f"no card {text!r}; {hint} (a size such as 24GB will do as well)")


def _key(text: str) -> str:
    key = re.sub(r"[^a-z0-9]", "", text.lower())
    return re.sub(r"^(nvidia|geforce|amd|instinct|tesla|quadro)+", "", key)
