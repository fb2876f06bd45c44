"""A batch in words: `1x256` is one sample of 256 tokens, `4` is four images."""

from __future__ import annotations

import re

from memlens.errors import UsageError
from memlens.models.shape import ModelShape
from memlens.models.table import find_model

__all__ = ["parse_batch"]


def parse_batch(text: str, model: str | ModelShape) -> tuple[int, int]:
    """Read a batch for a model.

    Args:
        text: `samples x tokens` for text; for images `samples`, or `samples x pixels` along a side,
            which must be what the model takes.
        model: a name of the table, or a shape.

    Returns:
        Samples, and tokens of each or pixels along one side of each.

    Raises:
        UsageError: the text says no batch, or none that the model can take.
    """
    shape = find_model(model) if isinstance(model, str) else model
    example = "4" if shape.kind == "image" else "1x256"
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:[xX×]\s*([0-9]{1,9})\s*)?", text)
    if match is None or (match[2] is None and shape.kind != "image"):
        wanted = "samples" if shape.kind == "image" else "samples x tokens"
        raise UsageError(f"a batch for {shape.name} is {wanted}, such as {example}, not {text!r}")
    samples = int(match[1])
    length = shape.input_size if match[2] is None else int(match[2])
    if samples == 0:
        raise UsageError(f"a batch of no samples trains nothing: {text!r}; give {example}")
    _check_length(shape, length)
    return samples, length


def _check_length(shape: ModelShape, length: int) -> None:
    if shape.kind == "image":
        if length != shape.input_size:
            raise UsageError(
                f"{shape.name} takes images of {shape.input_size} pixels a side, not {length}; "
                f"give the number of images alone, such as 4"
            )
        return
    # The first token has nothing before it from which to predict it.
    least = 2 if shape.kind == "causal_lm" else 1
    if length < least:
        raise UsageError(
            f"{shape.name} needs {least} or more tokens to have a loss, not {length}; "
            f"give more, such as 1x256"
        )
    if shape.max_tokens is not None and length > shape.max_tokens:
        raise UsageError(
            f"{shape.name} has positions for {shape.max_tokens} tokens, not {length}; "
            f"give fewer, such as 1x{shape.max_tokens}"
        )
