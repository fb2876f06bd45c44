"""What is alive at a rank's peak, as paths for flame graphs: by stack, and by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memlens.answers import Allocation, Frame
from memlens.palette import label

if TYPE_CHECKING:
    from memlens.capture import RankCapture

__all__ = ["Path", "peak_by_module", "peak_by_stack"]

Path = tuple[Frame, ...]
"""From the root of a flame graph to its tip; what is no line of code has no file."""

NO_STACK = "(no stack was recorded)"
NO_MODULE = "(outside of modules)"


def peak_by_stack(rank: RankCapture) -> dict[Path, int]:
    """Bytes by where they were asked for: the stack, outermost frame first, and the category."""
    held: dict[Path, int] = defaultdict(int)
    for block in rank.allocations_at(top=None):
        held[(*(block.stack or (_word(NO_STACK),)), _word(label(block.category)))] += (
            block.size_bytes
        )
    return _without_nothing(held)


def peak_by_module(rank: RankCapture) -> dict[Path, int]:
    """Bytes by whose they are: the module, word by word, the category, and the tensor's name.

    Blocks that several tensors share are cut, as `RankCapture.modules_at` does it.
    """
    held: dict[Path, int] = defaultdict(int)
    for block in rank.allocations_at(top=None):
        for module, name, size_bytes in _shares(block):
            words = [*(module.split(".") if module else [NO_MODULE]), label(block.category)]
            held[tuple(map(_word, [*words, name] if name else words))] += size_bytes
    return _without_nothing(held)


def _shares(block: Allocation) -> Iterator[tuple[str, str, int]]:
    """Module, name and bytes of each tensor in a block, and of what none of them takes."""
    for part in block.parts:
        yield part.module or block.module, part.name, part.size_bytes
    rest_bytes = block.size_bytes - sum(part.size_bytes for part in block.parts)
    yield block.module, block.name, rest_bytes


def _word(text: str) -> Frame:
    return Frame(text, "", 0)


def _without_nothing(held: dict[Path, int]) -> dict[Path, int]:
    """Without what takes no room; the largest first."""
    return dict(sorted(((path, size) for path, size in held.items() if size), key=lambda x: -x[1]))
