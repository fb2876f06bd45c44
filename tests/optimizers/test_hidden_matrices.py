"""Which parameters are matrices of hidden layers, and what they are called."""

from __future__ import annotations

import pytest
import torch
from tests.optimizers.llama import llama
from torch import nn

from memlens.variants.parameters import hidden_matrices, names_of, roots_of


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class Classifier(nn.Module):
    """With an embedding of positions, and a head of its own name."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.positions = nn.Embedding(10, 16)
        self.blocks = nn.ModuleList(Block(16) for _ in range(2))
        self.add_module(head, nn.Linear(16, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.hidden = nn.Linear(16, 16)
        self.output = nn.Linear(16, 32, bias=False)
        self.output.weight = self.embedding.weight


def hidden(model: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(each)] for each in hidden_matrices(model.parameters())]


@pytest.mark.parametrize("head", ["fc", "head", "classifier", "lm_head"])
def test_a_hidden_layer_may_be_called_fc_and_the_head_may_not(head: str) -> None:
    assert hidden(Classifier(head)) == ["blocks.0.fc.weight", "blocks.1.fc.weight"]


@pytest.mark.parametrize("layers", [1, 2])
def test_wrappers_change_nothing(layers: int) -> None:
    model: nn.Module = Classifier("fc")
    for _ in range(layers):
        model = nn.ModuleDict({"module": model})
    assert [name.replace("module.", "") for name in hidden(model)] == [
        "blocks.0.fc.weight",
        "blocks.1.fc.weight",
    ]


def test_an_output_layer_by_its_size_or_by_its_weight() -> None:
    assert hidden(Tied()) == ["hidden.weight"]
    untied = Tied()
    untied.output.weight = nn.Parameter(torch.randn(32, 16))
    assert hidden(untied) == ["hidden.weight"]


def test_a_language_model() -> None:
    names = hidden(llama(layers=1, width=32))
    assert len(names) == 7
    assert all(name.startswith("model.layers.0.") for name in names)


def test_parameters_of_no_module_and_of_two_models() -> None:
    loose = nn.Parameter(torch.randn(4, 4))
    first, block = Tied(), Block(4)
    second = nn.Sequential(block)
    parameters = [loose, *first.parameters(), *second.parameters()]
    assert set(map(id, roots_of(parameters))) == {id(first), id(second)}
    names = names_of(parameters)
    assert id(loose) not in names
    assert names[id(first.embedding.weight)] == "embedding.weight"  # not output.weight
    assert names[id(block.fc.bias)] == "0.fc.bias"
    found = hidden_matrices(parameters)
    assert list(map(id, found)) == list(map(id, [loose, first.hidden.weight, block.fc.weight]))
