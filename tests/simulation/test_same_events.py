"""A job that is simulated allocates what it really does: the same bytes, in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.same_events import differences, really_and_simulated

# Each job is one for which CPU and CUDA take the same kernels: no oneDNN, no loop over parameters.
MLP = """
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
            self.norm = nn.LayerNorm(48)

        def forward(self, x):
            return x + self.down(F.relu(self.up(self.norm(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(48, 48)
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.head = nn.Linear(48, 10)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = {call}
            return self.head(x)

    with torch.device(DEVICE):
        model = Model()

    def batch():
        return torch.randn(32, 48, device=DEVICE), torch.randint(0, 10, (32,), device=DEVICE)

    def loss_of(x, y):
        return F.cross_entropy(model(x), y)
"""
PLAIN_MLP = MLP.replace("{call}", "block(x)")
CHECKPOINTED_MLP = "    from torch.utils.checkpoint import checkpoint\n" + MLP.replace(
    "{call}", "checkpoint(block, x, use_reentrant={reentrant}, preserve_rng_state=False)"
)

TRANSFORMER = """
    class Attention(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            batch, length, width = x.shape
            q, k, v = (
                each.view(batch, length, self.heads, -1).transpose(1, 2)
                for each in self.qkv(x).chunk(3, dim=-1)
            )
            scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
            return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = Attention(width, heads)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self, words=97, width=32, heads=4, layers=2, length=24):
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, words, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x):
            place = torch.arange(x.shape[1], device=x.device)
            hidden = self.words(x) + self.places(place)
            for block in self.blocks:
                hidden = block(hidden)
            return self.head(self.norm(hidden))

    with torch.device(DEVICE):
        model = Model()

    def batch():
        words = torch.randint(0, 97, (4, 25), device=DEVICE)
        return words[:, :-1], words[:, 1:]

    def loss_of(x, y):
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())
"""

CONVOLUTIONS = """
    torch.backends.mkldnn.enabled = False

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.second = (
                nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)
            )

        def forward(self, x):
            return F.relu(x + self.second(F.relu(self.first(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
            self.blocks = nn.ModuleList(Block(16) for _ in range(2))
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(F.max_pool2d(x, 2).mean(dim=(2, 3)))

    with torch.device(DEVICE):
        model = Model()

    def batch():
        return torch.randn(4, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (4,), device=DEVICE)

    def loss_of(x, y):
        return F.cross_entropy(model(x), y)
"""

FORMULAS = """
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(24, 40), nn.Linear(40, 7)
            self.kept = []

        def forward(self, x):
            hidden = self.inner(x.transpose(0, 1)).transpose(0, 1)
            rows = torch.arange(5, device=x.device)
            picked = hidden[rows, rows] * hidden.max(dim=1).values[:5]
            chosen = hidden.index_select(0, rows).topk(3, dim=1).values.sum(dim=1)
            other = hidden.gather(1, rows.expand(6, 40, 5).transpose(1, 2)).sum(dim=1)[:5]
            both = chosen.exp() + chosen.tanh()
            if both.requires_grad:
                both.register_hook(self.kept.append)
            self.kept = self.kept[-2:]
            return self.head(picked + other * chosen + both)

    with torch.device(DEVICE):
        model = Model()

    def batch():
        return torch.randn(6, 11, 24, device=DEVICE), torch.rand(5, 7, device=DEVICE)

    def loss_of(x, y):
        weight = torch.full((7,), 2.0, device=DEVICE)
        return F.binary_cross_entropy_with_logits(model(x), y, pos_weight=weight)
"""
"""Where torch takes another way while a mode is active; and gradients that a hook keeps."""

LLAMA = """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, use_cache=False, attn_implementation="eager",
    )
    with torch.device(DEVICE):
        model = LlamaForCausalLM(config)

    def batch():
        words = torch.randint(0, 128, (2, 32), device=DEVICE)
        return words, words

    def loss_of(x, y):
        return model(input_ids=x, labels=y).loss
"""

PENALTY = """
    def penalised(loss):
        slopes = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return loss + sum(slope.square().sum() for slope in slopes)
"""
ADAMW = "    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)\n"
SGD = "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)\n"
ADAMW_R = """
    from memlens.optim import AdamWR
    optimizer = AdamWR(model.parameters(), lr=1e-3)
"""

STEPS = """
    for step in range(3):
        {evaluate}
        for _ in range({accumulate}):
            loss = loss_of(*batch())
            (loss / {accumulate}).backward()
        {clip}
        optimizer.step()
        optimizer.zero_grad(set_to_none={to_none})
        print(step)
"""
EVALUATE = "torch.inference_mode()(loss_of)(*batch())"
CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)"


def steps(
    *, accumulate: int = 1, clip: str = "", to_none: bool = True, evaluate: str = EVALUATE
) -> str:
    return (
        STEPS.replace("{accumulate}", str(accumulate))
        .replace("{clip}", clip)
        .replace("{evaluate}", evaluate)
        .replace("{to_none}", str(to_none))
    )


JOBS = {
    "mlp": PLAIN_MLP + ADAMW + steps(),
    "mlp, sgd, clipped": PLAIN_MLP + SGD + steps(clip=CLIP),
    "mlp, accumulated": PLAIN_MLP + ADAMW + steps(accumulate=3),
    "mlp, gradients kept": PLAIN_MLP + SGD + steps(to_none=False),
    "mlp, our optimizer": PLAIN_MLP + ADAMW_R + steps(),
    "mlp, checkpointed": CHECKPOINTED_MLP.replace("{reentrant}", "False") + ADAMW + steps(),
    "mlp, reentrant": CHECKPOINTED_MLP.replace("{reentrant}", "True") + ADAMW + steps(),
    "mlp, penalty on gradients": PLAIN_MLP.replace(
        "F.cross_entropy(model(x), y)", "penalised(F.cross_entropy(model(x), y))"
    )
    + PENALTY
    + SGD
    + steps(evaluate=""),
    "transformer": TRANSFORMER + ADAMW + steps(clip=CLIP),
    "convolutions": CONVOLUTIONS + SGD + steps(),
    "formulas": FORMULAS + SGD + steps(evaluate=""),
    "llama": LLAMA + ADAMW + steps(clip=CLIP),
}


COLUMNS = {4 * 4 * channels * 9 * 16**2 for channels in (3, 16)}
"""Bytes of images that the CPU lays out for a convolution to be a product of matrices."""


@pytest.mark.parametrize("name", JOBS)
def test_simulated_job_allocates_what_the_real_one_does(name: str, tmp_path: Path) -> None:
    real, simulated = really_and_simulated(JOBS[name], tmp_path)
    only_real = COLUMNS if name == "convolutions" else ()
    assert differences(real, simulated, only_real=only_real) == []
