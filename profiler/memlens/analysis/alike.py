"""Names of layers without their numbers: a model is mostly the same layer many times."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["layers_of", "pattern"]

# A number that stands alone between dots, with something behind it: the 3 of `layers.3.mlp`, not
# that of `conv.3`, since the members of a Sequential are not copies of each other.
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def pattern(name: str, layers: str = "*") -> str:
    """`model.layers.3.mlp` as `model.layers.*.mlp`.

    Args:
        name: of a module or a tensor.
        layers: what stands for the numbers.
    """
    return _LAYER_NUMBER.sub(layers, name)


def layers_of(names: Iterable[str]) -> str:
    """Which layers names of one pattern speak of, if they follow each other: `0-6`; else `*`."""
    numbers = [_LAYER_NUMBER.findall(name) for name in names]
    if not all(len(each) == 1 for each in numbers):
        return "*"
    found = sorted({int(each[0]) for each in numbers})
    first, last = found[0], found[-1]
    return f"{first}-{last}" if 1 < len(found) == last - first + 1 else "*"
