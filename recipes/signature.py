"""The schema of a configuration: the signature of the class it names, read from source without importing it.

A part's keyword-only arguments are its keys; their annotations are its types. Reading them with ``ast`` keeps
validation free of torch, and leaves a part's constructor as the only place where its configuration is declared.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("datamodules", "lightning_modules", "recipes")


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its annotation, as source, and whether it has a default."""

    annotation: ast.expr
    required: bool

    @property
    def type_name(self) -> str:
        return ast.unparse(self.annotation)


class UnknownTarget(LookupError):
    """A ``_target_`` that is outside our rooms or does not exist."""


@cache
def signature(target: str) -> dict[str, Key]:
    """Keys of the class or function that ``target`` names.

    Args:
        target: dotted path inside one of our rooms, e.g. ``lightning_modules.regularizers.saf.SAF``.

    Raises:
        UnknownTarget: with what is wrong and what is allowed.
    """
    module, _, name = target.rpartition(".")
    if module.split(".")[0] not in ROOMS:
        raise UnknownTarget(f"{target!r} is not a part of this library; targets start with {', '.join(ROOMS)}")
    return _keys(_function(module, name, target))


def matches(annotation: ast.expr, value: Any) -> bool:
    """Whether a plain YAML value fits a type annotation; a type that is not plain means a nested part."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):
            return matches(ast.parse(text, mode="eval").body, value)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return matches(left, value) or matches(right, value)
        case ast.Name(id="Any"):
            return True
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.Name(id="list"):
            return isinstance(value, list)
        case ast.Name(id="dict"):
            return isinstance(value, dict)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=slice_):
            return (
                value in ast.literal_eval(slice_)
                if isinstance(slice_, ast.Tuple)
                else value == ast.literal_eval(slice_)
            )
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(matches(item, element) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return isinstance(value, dict) and all(matches(item, element) for element in value.values())
    return isinstance(value, dict) and "_target_" in value


def _function(module: str, name: str, target: str) -> ast.FunctionDef:
    """The definition that is called: a function, or the ``__init__`` of a class or of its nearest base that has one."""
    tree = _tree(module, target)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return item
            for base in node.bases:
                if isinstance(base, ast.Name) and (found := _imported(tree, base.id, module)):
                    return _function(*found, target)
            return ast.parse("def __init__(self): pass").body[0]  # type: ignore[return-value]
    raise UnknownTarget(f"{target!r}: {module.replace('.', '/')}.py defines no {name!r}")


def _imported(tree: ast.Module, name: str, module: str) -> tuple[str, str] | None:
    """Where a base class comes from, if it comes from our rooms."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, name
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return None


@cache
def _tree(module: str, target: str) -> ast.Module:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        raise UnknownTarget(f"{target!r}: there is no {module.replace('.', '/')}.py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _keys(function: ast.FunctionDef) -> dict[str, Key]:
    arguments = function.args
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {
        argument.arg: Key(argument.annotation or ast.Name("Any"), required=default is None)
        for argument, default in pairs
    }
