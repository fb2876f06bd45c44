"""Every model that memlens can build, by name."""

from __future__ import annotations

from difflib import get_close_matches

from memlens.errors import UsageError
from memlens.models import image, language
from memlens.models.shape import ModelShape

__all__ = ["MODELS", "find_model"]

MODELS: dict[str, ModelShape] = {
    shape.name: shape for shapes in (language.MODELS, image.MODELS) for shape in shapes
}
"""Name to shape, language models first."""


def find_model(name: str) -> ModelShape:
    """The shape of a name.

    Raises:
        UsageError: there is none; the text names those that look alike.
    """
    shape = MODELS.get(name)
    if shape is None:
        close = get_close_matches(name.lower(), MODELS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(MODELS)}"
        raise UsageError(f"no built-in model {name!r}; {hint}")
    return shape
