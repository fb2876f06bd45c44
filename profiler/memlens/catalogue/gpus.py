"""Cards by name, and how much of their memory a training can use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from memlens.errors import UsageError
from memlens.units import format_bytes, parse_bytes

__all__ = ["CONTEXT_BYTES", "GPUS", "Gpu", "find_gpu"]

_MIB = 1 << 20

CONTEXT_BYTES = 1 << 30
"""What a training cannot have of a card: the driver keeps 0.3 to 0.8 GiB for itself (torch names
79.25 GiB of an A100's 80, 139.80 of an H200's 140.40 and 23.64 of an RTX 4090's 23.99 when it runs
out of memory), and the CUDA context with its libraries takes 0.3 to 0.6 GiB."""


@dataclass(frozen=True)
class Gpu:
    """One card."""

    name: str
    total_bytes: int
    """As its driver reports it; by up to 7 % more or less than on the box."""
    source: str = ""
    capability: tuple[int, int] = (8, 0)
    """Compute capability, by which PyTorch chooses kernels (for AMD, what a ROCm build reports)."""
    multi_processors: int = 108
    """Streaming multiprocessors (compute units), by which some kernels choose their buffers."""

    @property
    def usable_bytes(self) -> int:
        """What is left for tensors."""
        return self.total_bytes - CONTEXT_BYTES


_NVIDIA = "total of nvidia-smi"
_NVIDIA_ECC = "total of nvidia-smi with ECC on, as servers have it"
_AMD = "VRAM total of rocm-smi"

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 15360 * _MIB, _NVIDIA_ECC, (7, 5), 40),
        Gpu("V100 16GB", 16160 * _MIB, _NVIDIA, (7, 0), 80),
        Gpu("V100 32GB", 32510 * _MIB, _NVIDIA, (7, 0), 80),
        Gpu("RTX 3060", 12288 * _MIB, _NVIDIA, (8, 6), 28),
        Gpu("RTX 3090", 24576 * _MIB, _NVIDIA, (8, 6), 82),
        Gpu("RTX 4060 Ti 16GB", 16380 * _MIB, _NVIDIA, (8, 9), 34),
        Gpu("RTX 4070", 12282 * _MIB, _NVIDIA, (8, 9), 46),
        Gpu("RTX 4080", 16376 * _MIB, _NVIDIA, (8, 9), 76),
        Gpu("RTX 4090", 24564 * _MIB, _NVIDIA, (8, 9), 128),
        Gpu("RTX 5080", 16303 * _MIB, _NVIDIA, (12, 0), 84),
        Gpu("RTX 5090", 32607 * _MIB, _NVIDIA, (12, 0), 170),
        Gpu("RTX A6000", 49140 * _MIB, _NVIDIA, (8, 6), 84),
        Gpu("RTX 6000 Ada", 49140 * _MIB, _NVIDIA, (8, 9), 142),
        Gpu("A10", 23028 * _MIB, _NVIDIA_ECC, (8, 6), 72),
        Gpu("A40", 46068 * _MIB, _NVIDIA_ECC, (8, 6), 84),
        Gpu("L4", 23034 * _MIB, _NVIDIA_ECC, (8, 9), 58),
        Gpu("L40S", 46068 * _MIB, _NVIDIA_ECC, (8, 9), 142),
        Gpu("A100 40GB", 40960 * _MIB, _NVIDIA, (8, 0), 108),
        Gpu("A100 80GB", 81920 * _MIB, _NVIDIA, (8, 0), 108),
        Gpu("H100 80GB", 81559 * _MIB, _NVIDIA, (9, 0), 132),
        Gpu("H100 NVL", 95830 * _MIB, _NVIDIA, (9, 0), 132),
        Gpu("H200", 143771 * _MIB, _NVIDIA, (9, 0), 132),
        Gpu("B200", 183359 * _MIB, _NVIDIA, (10, 0), 148),
        # Two devices of this size on one board; a training sees each as a card.
        Gpu("MI250X GCD", 65520 * _MIB, _AMD, (9, 0), 110),
        Gpu("MI300X", 196592 * _MIB, _AMD, (9, 4), 304),
        Gpu("MI325X", 262128 * _MIB, _AMD, (9, 4), 304),
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
                f"a card of {gpu.name} is too small: driver and CUDA take some "
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
