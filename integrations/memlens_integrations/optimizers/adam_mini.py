"""Adam-mini (arXiv 2406.16793): one second moment for each block of a transformer, found by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_optimizer import AdamMini

from memlens.errors import UsageError
from memlens.variants.parameters import names_of, roots_of
from memlens.variants.request import Request

__all__ = ["make"]

_PER_HEAD = ("q_proj.weight", "k_proj.weight", "wq.weight", "wk.weight")
_JOINT = ("attn.attn.weight", "attn.qkv.weight")
"""What the library takes for attention, and cuts by heads."""


@dataclass(frozen=True)
class _Attention:
    heads: int
    groups: int
    """Heads of keys and values."""
    head_width: int


class _Named:
    """All that Adam-mini asks of a model."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        self._parameters = parameters

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._parameters.items())


def make(request: Request) -> torch.optim.Optimizer:
    """`adam-mini` of the catalogue.

    Each parameter is a group of its own, since the library finds the blocks by the groups' names; what
    the job's groups say holds for their parameters. The number of heads comes from the model's
    configuration (Hugging Face's), or from the option `heads`.

    Raises:
        UsageError: there is attention, and nothing says how many heads it has.
    """
    names = names_of(request.parameters())
    named: dict[str, torch.Tensor] = {}
    settings: list[dict[str, Any]] = []
    for group in request.groups:
        own = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            if parameter.requires_grad:
                named[names.get(id(parameter), f"parameters.{len(named)}")] = parameter
                settings.append(own)
    sizes: dict[str, Any] = {}
    attention = _attention(request, named)
    if attention is not None:
        sizes = {
            "num_embeds": attention.heads * attention.head_width,
            "num_heads": attention.heads,
            "num_query_groups": attention.groups,
        }
    model: Any = _Named(named)
    optimizer: Any = AdamMini(model, **request.hyper, **sizes)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
        if attention is not None and "parameter_per_head" in group:
            # The library takes the square of the embedding for granted.
            group["parameter_per_head"] = attention.head_width * group["params"][0].shape[1]
    made: torch.optim.Optimizer = optimizer
    return made


def _attention(request: Request, named: dict[str, torch.Tensor]) -> _Attention | None:
    """How the model's attention is cut, or None: it has none that the library knows."""
    cut = [name for name in named if any(block in name for block in (*_PER_HEAD, *_JOINT))]
    if not cut:
        return None
    heads = request.options["heads"]
    config = _config(named.values())
    if not heads and config is not None:
        heads = config.num_attention_heads
    if not heads:
        raise UsageError(
            f"adam-mini cuts {cut[0]} by heads, and the model does not say how many there are "
            "(config.num_attention_heads); write adam-mini:heads=NUMBER"
        )
    if config is not None:
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return _Attention(heads, getattr(config, "num_key_value_heads", None) or heads, width)
    first = named[cut[0]]
    if first.shape[1] % heads:
        raise UsageError(f"{heads} heads do not divide {cut[0]} of {tuple(first.shape)}")
    return _Attention(heads, heads, first.shape[1] // heads)


def _config(parameters: Any) -> Any:
    """Configuration of the model that holds these parameters, if it has Hugging Face's words."""
    for root in roots_of(parameters):
        for module in root.modules():
            config = getattr(module, "config", None)
            if hasattr(config, "num_attention_heads") and hasattr(config, "hidden_size"):
                return config
    return None
