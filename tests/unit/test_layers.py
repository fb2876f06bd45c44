"""Dependencies point one way, and public names are listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import memlens
import memlens_integrations

PACKAGE = Path(memlens.__file__).parent
INTEGRATIONS = Path(memlens_integrations.__file__).parent

LAYERS = (
    {"__init__", "errors", "events", "palette", "units"},
    {
        "answers",
        "allocator",
        "options",
        "torch_private",
        "torch_private_distributed",
        "catalogue",
        "models",
        "optim",
        "sharding",
    },
    {"disk"},
    {"attribution"},
    {"analysis"},
    {"rank"},
    {"capture"},
    {"across"},
    {"recording", "sources", "observers", "adapters", "simulation", "live"},
    {"variants"},
    {"importing", "launch", "report", "watching"},
    {"exporters", "doctor", "web"},
    {"comparing", "planning"},
    {"cli", "__main__"},
)
"""A part may import from its own layer and from those above it in this list."""

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """Which part of memlens a full name belongs to; None for other packages."""
    words = name.split(".")
    if words[0] != "memlens":
        return None
    return words[1] if len(words) > 1 and words[1] in LEVEL else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_one_way(path: Path) -> None:
    inner = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if inner == "launch" and path.name == "sitecustomize.py":
        return  # runs in the job's interpreter, before memlens is known to be there
    level = LEVEL[inner]
    wrong = {name for name in imported(path) if (part := part_of(name)) and LEVEL[part] > level}
    assert not wrong, f"{inner} must not import {sorted(wrong)}"


def test_integrations_are_imported_by_name_only() -> None:
    for path in MODULES:
        assert not {n for n in imported(path) if n.split(".")[0] == "memlens_integrations"}, path
    for home in memlens_integrations.ADAPTERS.values():
        module, _, attribute = home.partition(":")
        assert hasattr(import_module(module), attribute)


def test_public_names_are_listed_and_sorted() -> None:
    assert list(memlens.__all__) == sorted(memlens.__all__)
    for name in memlens.__all__:
        assert getattr(memlens, name) is not None
    assert dir(memlens) == sorted(memlens.__all__)


@pytest.mark.parametrize(
    "path", MODULES + sorted(INTEGRATIONS.rglob("*.py")), ids=lambda path: path.name
)
def test_every_module_says_what_it_is_and_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    if defined:
        assert listed, "no __all__"
        assert set(defined) <= {*listed[0], "command"} or path.name == "__init__.py"
