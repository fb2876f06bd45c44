"""One model as data: what to build, and how many parameters it must come out with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Kind", "ModelShape", "Value"]

Kind = Literal["causal_lm", "masked_lm", "seq2seq", "image"]
"""What a model is trained on: tokens in three ways, or images."""

Value = int | float | bool | str | tuple[int, ...]


@dataclass(frozen=True)
class ModelShape:
    """One row of the table: enough to build the model with random weights."""

    name: str
    title: str
    """The name as publications print it."""
    kind: Kind
    model_class: str
    """Name of the model's class in transformers; that class names its configuration."""
    config: Mapping[str, Value]
    """What the configuration's defaults do not say. Text models give `vocab_size`, image models
    `image_size`, and those with a head `num_labels`."""
    published_parameters: int
    """How many parameters the source gives; tied weights count once."""
    source: str
    """Where that number is published."""
    rounding: int = 0
    """Half a unit of the last digit that the source prints; 0: the number is exact."""
    arguments: Mapping[str, Value] = field(default_factory=dict)
    """What the model's class takes beside the configuration."""
    has_head: bool = True
    """False: it ends in features, and so knows no labels."""
    max_tokens: int | None = None
    """Where its learned positions end; None: its positions are computed."""

    @property
    def input_size(self) -> int:
        """Entries of the vocabulary, or pixels along one side of an image."""
        value = self.config["image_size" if self.kind == "image" else "vocab_size"]
        assert isinstance(value, int)
        return value
