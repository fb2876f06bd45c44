"""Building a model of the table with random weights, and random batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memlens.errors import MissingDependencyError, UsageError
from memlens.models.shape import ModelShape
from memlens.models.table import find_model

__all__ = ["build_model", "compute_loss", "count_parameters", "make_batch", "model_class"]


def build_model(
    model: str | ModelShape,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    checkpointing: bool = False,
) -> nn.Module:
    """Build a model with random weights, ready to be trained.

    Every weight is made on its device and in its dtype from the start, so that building needs no
    more memory than the model. On the `meta` device it needs none.

    Args:
        model: a name of the table, or a shape.
        dtype: of the weights; tables such as rotary frequencies keep theirs.
        device: where to build it.
        checkpointing: have it recompute the activations of each layer in backward.

    Raises:
        UsageError: there is no model of that name, or it cannot recompute.
        MissingDependencyError: transformers is not installed.
    """
    shape = find_model(model) if isinstance(model, str) else model
    network_class = model_class(shape)
    config = {key: list(v) if isinstance(v, tuple) else v for key, v in shape.config.items()}
    if shape.kind != "image":
        config["use_cache"] = False
    with _default_dtype(dtype), torch.device(device):
        network = network_class(network_class.config_class(**config), **shape.arguments)
    if checkpointing:
        if not network.supports_gradient_checkpointing:
            raise UsageError(
                f"{shape.name} cannot recompute activations: transformers' {shape.model_class} "
                f"has no checkpointing; leave it off"
            )
        # The older name warns where there is the newer one.
        enable = getattr(network, "activation_checkpointing_enable", None)
        (enable or network.gradient_checkpointing_enable)({"use_reentrant": False})
    trained: nn.Module = network.train()
    return trained


def count_parameters(model: str | ModelShape) -> int:
    """How many parameters a model has; tied weights count once."""
    network = build_model(model, device="meta")
    return sum(parameter.numel() for parameter in network.parameters())


def make_batch(
    model: str | ModelShape,
    samples: int,
    length: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Make a random batch, as the keyword arguments of the model's forward.

    Args:
        model: a name of the table, or a shape.
        samples: in the batch.
        length: tokens of each (for `seq2seq`, of source and of target), or pixels along a side.
        dtype: of pixels.
        device: where to make it.

    Returns:
        `input_ids` and `labels`, (samples, length) each; a language model learns to repeat its
        tokens or to predict the next. Or `pixel_values`, (samples, 3, length, length), and
        `labels`, (samples,), unless the model has no head.
    """
    shape = find_model(model) if isinstance(model, str) else model
    if shape.kind == "image":
        pixels = torch.randn(samples, 3, length, length, dtype=dtype, device=device)
        batch = {"pixel_values": pixels}
        if shape.has_head:
            classes = shape.config["num_labels"]
            assert isinstance(classes, int)
            batch["labels"] = torch.randint(classes, (samples,), device=device)
        return batch
    tokens = torch.randint(shape.input_size, (samples, length), device=device)
    return {"input_ids": tokens, "labels": tokens}


def compute_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """One forward: the model's own loss, or that of its features where it has no head.

    The rest of the output is dropped on return, as in `loss = model(**batch).loss`.

    Returns:
        A scalar.
    """
    output = network(**batch)
    if "labels" in batch:
        loss: Tensor = output.loss
        return loss
    # The mean over tokens comes first: a layer norm ends the model, and the mean square of what it
    # returns is 1 whatever the weights before it are.
    features: Tensor = output.last_hidden_state.mean(dim=1)
    return features.square().mean()


def model_class(shape: ModelShape) -> Any:
    """The class that a shape's model is built from; importing it loads much.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError("transformers", f"build {shape.name}", "models") from error
    return getattr(transformers, shape.model_class)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
