"""Who may import whom, where heavy imports may stand, and that no files import each other in a circle."""

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
#: Wings of a room, and files beside them, in their order: one imports of itself and of those before it. "" is whatever
#: else lies directly in the room.
WINGS = {
    "recipes": [
        {"configuration"}, {"processes", "report"}, {"checkpoints"}, {"running"}, {"building"},
        {"evaluate", "query", "exporting"}, {"cli", ""},
    ],
    "datamodules": [{"order", "reading", "labels", "augmentation"}, {""}, {"sources"}],
}  # fmt: skip
LAZY = {"faiss", "imagecorruptions", "albumentations", "matplotlib", "onnx", "wandb", "tensorboard"}
#: Reachable before a configuration is valid.
TORCH_FREE = [
    "recipes/__init__.py", "recipes/cli.py", "recipes/evaluate.py", "recipes/checkpoints/stored.py",
    "recipes/running/sweep.py", "lightning_modules/__init__.py", "lightning_modules/names.py", "kernels/ranges.py",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "recipes" / "configuration").glob("*.py")),
]  # fmt: skip
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(nodes) -> set[str]:
    """First names of what is imported."""
    return {name.split(".")[0] for name in modules(nodes)}


def modules(nodes) -> set[str]:
    """Dotted names; those of ``from A import b`` are both A and A.b."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


BY_MODULE = {module_of(path): path for path in FILES}


def place(module: str) -> int:
    """The number of the wing that a module of a room with wings lies in."""
    room, *rest = module.split(".")
    name = rest[0] if rest else ""
    ranks = {wing: rank for rank, wings in enumerate(WINGS[room]) for wing in wings}
    return ranks.get(name, ranks[""])


def test_there_are_files():
    assert len(FILES) > 40


@EVERY
def test_arrows(path):
    room = path.relative_to(ROOT).parts[0]
    others = imports(ast.walk(tree(path))) & set(ROOMS) - {room}
    assert others <= ALLOWED[room], f"{room} must not import {others - ALLOWED[room]}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.relative_to(ROOT).parts[0] in WINGS], ids=lambda p: str(p.relative_to(ROOT))
)
def test_arrows_of_the_wings(path):
    module = module_of(path)
    room = module.split(".")[0]
    inside = {name for name in modules(ast.walk(tree(path))) & set(BY_MODULE) if name.split(".")[0] == room}
    later = {name for name in inside if place(name) > place(module)}
    assert not later, f"{module} lies before {later}"


def test_no_files_import_each_other_in_a_circle():
    """Imports inside of functions count; those for types alone do not run, and count as well."""
    edges = {
        module: {name for name in modules(ast.walk(tree(path))) & set(BY_MODULE) if name != module}
        for module, path in BY_MODULE.items()
    }
    while leaves := {module for module, found in edges.items() if not found & set(edges)}:
        edges = {module: found for module, found in edges.items() if module not in leaves}
    assert not edges, f"in a circle, or before one: {sorted(edges)}"


@EVERY
def test_heavy_and_optional_imports_are_inside_functions(path):
    assert not imports(tree(path).body) & LAZY


@pytest.mark.parametrize("name", TORCH_FREE)
def test_nothing_before_validation_imports_torch_at_the_top(name):
    heavy = {"torch", "timm", "lightning", "torchvision", "numpy"}
    assert not imports(tree(ROOT / name).body) & heavy


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "export.py"])
def test_root_scripts_import_only_recipes(name):
    assert imports(ast.walk(tree(ROOT / name))) == {"recipes"}
