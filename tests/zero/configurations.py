"""The model that job.py trains, and the configurations that it trains it in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn, relu
from torch.utils.checkpoint import checkpoint

__all__ = ["INPUTS", "OUTPUTS", "STEPS", "Model", "groups_of", "settings"]

STEPS = 3
WIDTH, INPUTS, OUTPUTS = 131, 61, 34
REDUCE_BUCKET = 20_000
"""Elements; the largest parameter has more."""
PERSISTENT = 150
"""Elements up to which a parameter of stage 3 stays gathered."""


class Block(nn.Module):
    """A layer with odd sizes, so that nothing is divisible by anything."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.norm(self.down(relu(self.up(x))))
        return x + added


class Model(nn.Module):
    """Two blocks, the second one checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, WIDTH)
        self.blocks = nn.ModuleList([Block(WIDTH, 97), Block(WIDTH, 211)])
        self.last = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.first(x))
        x = checkpoint(self.blocks[1], x, use_reentrant=False)
        found: Tensor = self.last(x)
        return found


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": 0.1},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]


def settings(name: str) -> dict[str, Any]:
    """The ds_config of a configuration, such as `stage2-bf16-accumulate-float32`."""
    stage, *traits = name.split("-")
    zero: dict[str, Any] = {
        "stage": int(stage.removeprefix("stage")),
        "reduce_bucket_size": REDUCE_BUCKET,
        "stage3_param_persistence_threshold": PERSISTENT,
        "stage3_prefetch_bucket_size": 15_000,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "overlap_comm": "overlap" in traits,
        "round_robin_gradients": "roundrobin" in traits,
    }
    if "offload" in traits or "offloadall" in traits:
        zero["offload_optimizer"] = {"device": "cpu"}
    if "offloadall" in traits:
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2 if "accumulate" in traits else 1,
        "gradient_clipping": 0.5,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "bf16" in traits},
        # A scale that does not change: no step is skipped.
        "fp16": {"enabled": "fp16" in traits, "loss_scale": 128},
    }
    if "float32" in traits:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if "config" in traits:
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}
    return config
