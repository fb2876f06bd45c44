"""What the simulation touches of torch's private parts is named in one place, and is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memlens.simulation
from memlens import torch_private
from memlens.torch_private import SIMULATION_NAMES, missing_simulation_features

FOLDER = Path(memlens.simulation.__path__[0])
ROOTS = {"torch": "torch", "_torch": "torch", "_Tensor": "torch.Tensor"}


def used(path: Path) -> Iterator[str]:
    """Dotted names of torch with a private part."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            parts = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in ROOTS:
                yield ".".join((ROOTS[inner.id], *reversed(parts)))


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_private_names_are_listed(path: Path) -> None:
    listed = {part for name in SIMULATION_NAMES for part in _prefixes(name)}
    stray = {
        name
        for name in used(path)
        if is_private(name) and name not in listed and not _begins(name, SIMULATION_NAMES)
    }
    assert not stray


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def _begins(name: str, listed: tuple[str, ...]) -> bool:
    """It is an attribute of something that is listed."""
    return any(name.startswith(f"{each}.") for each in listed)


def test_this_torch_has_them() -> None:
    assert missing_simulation_features() == []


def test_a_torch_that_lacks_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "torch._C._swap_tensor_impl",
        "torch._C._no_such_thing",
        "torch.nothing.at.all",
        "last",
    )
    monkeypatch.setattr(torch_private, "SIMULATION_NAMES", names)
    assert missing_simulation_features() == ["torch._C._no_such_thing", "torch.nothing.at.all"]
