"""Which parameters are the matrices of hidden layers, and what they are called.

An optimizer gets tensors without names. Their modules are found among the objects of the process.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch

__all__ = ["hidden_matrices", "names_of", "roots_of"]

_HEADS = frozenset(
    {"lm_head", "head", "heads", "classifier", "score", "embed_out", "output_layer", "cls"}
)
"""What libraries call a model's output layer, wherever it stands."""
_OUTERMOST = _HEADS | {"fc"}
"""And what they call it only at the top; within a block, `fc` is a hidden layer."""
_WRAPPERS = frozenset({"module", "model", "_orig_mod"})
"""What stands before the names of a model that is wrapped."""


def roots_of(parameters: Iterable[torch.Tensor]) -> list[torch.nn.Module]:
    """The outermost modules that hold any of these parameters."""
    wanted = {id(parameter) for parameter in parameters}
    holders = []
    inner: set[int] = set()
    for item in gc.get_objects():
        # isinstance would ask proxies for their class and run code of theirs.
        if not issubclass(type(item), torch.nn.Module) or "_modules" not in vars(item):
            continue
        children = [child for child in item._modules.values() if child is not None]
        inner.update(id(child) for child in children)
        holders.append(item)
    tops = [module for module in holders if id(module) not in inner]
    return [top for top in tops if any(id(each) in wanted for each in top.parameters())]


def names_of(parameters: Iterable[torch.Tensor]) -> dict[int, str]:
    """Qualified name of each parameter, by its id; those that no module holds are left out."""
    return {
        id(parameter): name
        for root in roots_of(list(parameters))
        for name, parameter in root.named_parameters()  # tied ones by their first name
    }


def hidden_matrices(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Those of two dimensions that are neither embeddings nor the output layer.

    The output layer is a `Linear` that is called like one, is tied to an embedding, or has as many
    outputs as an embedding has entries. This is what GaLore (arXiv 2403.03507) and Muon leave to
    other optimizers.
    """
    parameters = list(parameters)
    left_out: set[int] = set()
    vocabularies: set[int] = set()
    linears: list[tuple[str, torch.nn.Linear]] = []
    for root in roots_of(parameters):
        for name, module in root.named_modules():
            if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
                left_out.add(id(module.weight))
                vocabularies.add(module.num_embeddings)
            elif isinstance(module, torch.nn.Linear):
                linears.append((name, module))
    for name, linear in linears:
        words = [word for word in name.split(".") if word not in _WRAPPERS] or [name]
        if words[0] in _OUTERMOST or words[-1] in _HEADS or linear.out_features in vocabularies:
            left_out.add(id(linear.weight))
    return [each for each in parameters if each.dim() == 2 and id(each) not in left_out]
