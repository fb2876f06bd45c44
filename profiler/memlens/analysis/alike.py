"""Names of layers without their numbers: a model is mostly the same layer many times."""

from __future__ import annotations

import re

__all__ = ["pattern"]

# A number that stands alone between dots, with something behind it: the 3 of `layers.3.mlp`, not
# that of `conv.3`, since the members of a Sequential are not copies of each other.
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def pattern(name: str) -> str:
    """`model.layers.3.mlp` as `model.layers.*.mlp`."""
    return _LAYER_NUMBER.sub("*", name)
