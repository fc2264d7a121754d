"""Where the source of a module lies, found without importing anything."""

from __future__ import annotations

import ast
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Folders whose classes and functions a configuration may name without the user's leave.
ROOMS = ("datamodules", "lightning_modules", "recipes")


def source_file(module: str) -> Path | None:
    """The ``.py`` file that ``import module`` would run; None where there is none, or no source."""
    first, *rest = module.split(".")
    if first in ROOMS:
        path = ROOT.joinpath(first, *rest).with_suffix(".py")
        return path if path.is_file() else None
    try:
        spec = find_spec(first)  # of a name without a dot, this imports nothing
        for number, name in enumerate(rest):
            if spec is None or spec.submodule_search_locations is None:
                return None
            full = ".".join([first, *rest[:number], name])
            spec = PathFinder.find_spec(full, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed source.

    Raises:
        ValueError: it is no Python that this version reads.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is no Python source: {error}") from error


def import_source(node: ast.ImportFrom, module: str) -> str | None:
    """The module that an import statement of ``module`` names, also where it is relative."""
    if not node.level:
        return node.module
    path = source_file(module)
    package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])]) or None
