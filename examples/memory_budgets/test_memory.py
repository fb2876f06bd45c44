"""How a project holds its training to memory budgets, on a machine without a GPU.

pytest                            fails if a step needs more than its budget or its baseline
pytest --memory-update-baseline   what it needs now is right: commit memory_baseline.json
pytest --memory-report            lists what the tests needed
"""

import pytest
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 1000, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def train(model, optimizer, device, steps=2, batch=4):
    for _ in range(steps):
        tokens = torch.randint(0, 1000, (batch, 64), device=device)
        logits = model(tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(autouse=True)
def one_thread():
    """Some operators keep a buffer per thread: the figures shall not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    return Model(width=128, layers=4)


@pytest.mark.memory_budget(peak="20MB", optimizer_state="9MB", baseline=True)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_step(model, kind):
    train(model, kind(model.parameters(), lr=1e-3), "cpu")


@pytest.mark.memory_budget(gpu="RTX 4090", reserved="8GB", baseline=True, tolerance="1%")
def test_step_of_the_large_model_fits_a_card():
    """Simulated: tensors have no data, and memory is what CUDA's allocator would take."""
    model = Model(width=2048, layers=8).to("cuda", torch.bfloat16)
    train(model, torch.optim.AdamW(model.parameters()), "cuda", batch=16)


def test_evaluation_keeps_no_activations(model, memory_profile):
    with memory_profile() as profile, torch.no_grad():
        model(torch.zeros(4, 64, dtype=torch.long))
    profile.assert_below(gradient=0, optimizer_state=0, peak="10MB")
    assert profile.most_bytes["activation"] < 4 * 64 * 1000 * 4 * 3
