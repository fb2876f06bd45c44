"""The models of the table, shrunk to what trains in milliseconds."""

from __future__ import annotations

from dataclasses import replace

from memlens.models.shape import ModelShape, Value
from memlens.models.table import MODELS

__all__ = ["SMALL"]

_TEXT: dict[str, Value] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_VIT: dict[str, Value] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

_CHANGES: dict[str, dict[str, Value]] = {
    "llama-60m": _TEXT,
    "bloom-560m": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "phi-1.5": _TEXT,
    "qwen1.5-0.5b": _TEXT | {"num_key_value_heads": 4},
    "gemma-2b": _TEXT | {"head_dim": 8},
    "falcon-7b": {key: _TEXT[key] for key in _TEXT if key != "intermediate_size"},
    "chatglm3-6b": _TEXT | {"num_key_value_heads": 2, "head_dim": 8},
    "bert-base": _TEXT,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "t5-3b": {
        "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    },
    "vit-s": _VIT | {"num_labels": 8},
    "vit-l": _VIT,
    "convnext-t": {
        "image_size": 32, "hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_labels": 8,
    },
}  # fmt: skip

SMALL: dict[str, ModelShape] = {
    name: replace(MODELS[name], config={**MODELS[name].config, **changes})
    for name, changes in _CHANGES.items()
}
"""One for each class of the table, by the name of the row it was shrunk from."""
