"""Who may import whom, and where heavy imports may stand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "datamodules", "lightning_modules", "recipes")
ALLOWED = {
    "kernels": set(),
    "datamodules": {"kernels"},
    "lightning_modules": {"kernels"},
    "recipes": {"kernels", "datamodules", "lightning_modules"},
}
LAZY = {"faiss", "albumentations", "matplotlib", "onnx", "wandb", "tensorboard"}
#: Reachable before a configuration is valid.
TORCH_FREE = [
    "recipes/__init__.py", "recipes/cli.py", "recipes/catalogue.py", "recipes/compose.py", "recipes/help.py",
    "recipes/allow.py", "recipes/plain.py", "recipes/recipe_file.py", "recipes/source.py", "recipes/stored.py",
    "recipes/overrides.py", "recipes/signature.py", "recipes/sweep.py", "recipes/validate.py", "recipes/evaluate.py",
    "recipes/layers.py", "lightning_modules/__init__.py", "lightning_modules/names.py",
]  # fmt: skip
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(nodes) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_files():
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    room = path.relative_to(ROOT).parts[0]
    others = imports(ast.walk(tree(path))) & set(ROOMS) - {room}
    assert others <= ALLOWED[room], f"{room} must not import {others - ALLOWED[room]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_and_optional_imports_are_inside_functions(path):
    assert not imports(tree(path).body) & LAZY


@pytest.mark.parametrize("name", TORCH_FREE)
def test_nothing_before_validation_imports_torch_at_the_top(name):
    heavy = {"torch", "timm", "lightning", "torchvision", "numpy"}
    assert not imports(tree(ROOT / name).body) & heavy


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "export.py"])
def test_root_scripts_import_only_recipes(name):
    assert imports(ast.walk(tree(ROOT / name))) == {"recipes"}
