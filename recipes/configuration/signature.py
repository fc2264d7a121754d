"""The schema of a configuration: the signature of the class it names, read from source without importing it.

A part's keyword-only arguments are its keys; their annotations are its types and, as ``Annotated[float, "x > 0"]``, its
ranges. Reading them with ``ast`` keeps validation free of torch, and leaves a part's constructor as the only place
where its configuration is declared.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from recipes.configuration.allow import is_allowed
from recipes.configuration.annotation import range_of, without_ranges
from recipes.configuration.catalogue import group_of, groups, holds_several, is_group
from recipes.configuration.source import ROOMS, ROOT, import_source, source_file, tree_of

TARGET = "_target_"
ANYWHERE = ("datamodules.", "lightning_modules.", "recipes.processes.trainer.create_trainer")


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as source: its annotation with ranges as it is stated, its type alone, and whether it has a default."""

    stated: ast.expr
    annotation: ast.expr
    required: bool

    @property
    def type_name(self) -> str:
        return ast.unparse(self.annotation)


class UnknownTarget(LookupError):
    """A ``_target_`` that is outside its place or does not exist."""


def place_of(group: str) -> str:
    """What the targets of a config group start with: its folder, so that no group reaches into another's."""
    names = (group, f"{group}s", f"{group}es")
    folders = [f"lightning_modules.{name}." for name in names if (ROOT / "lightning_modules" / name).is_dir()]
    declared = group_of(group).place if is_group(group) else None
    return declared or (folders[0] if folders else "lightning_modules.")


def place_inside(target: str) -> str:
    """What the targets of parts nested in a part start with: its own room, since rooms of parts do not mix."""
    return f"{target.partition('.')[0]}."


def check_target(target: str, *places: str) -> None:
    """Refuse a ``_target_`` that some YAML names, before anything is imported.

    Args:
        target: dotted path; one in a package that the user allowed may stand anywhere.
        places: what it may start with, or, without a dot at the end, may be.

    Raises:
        UnknownTarget: it lies elsewhere, is private, or its module only imports it.
    """
    inside = any(target == place or (place.endswith(".") and target.startswith(place)) for place in places)
    named = all(name.isidentifier() and not name.startswith("_") for name in target.split("."))
    if not named or not (inside or is_allowed(target)):
        raise UnknownTarget(
            f"{target!r} is not a part of this library that can stand here; allowed here: {' or '.join(places)}"
            f"{outside_hint(target) if named else ''}"
        )
    signature(target)


def outside_hint(target: str) -> str:
    """How to use a part of another package; nothing where the path cannot be one."""
    package = target.partition(".")[0]
    if package in (target, "kernels", *ROOMS, *sys.stdlib_module_names):
        return ""
    return f"; it is outside this library; if you trust it, add --allow {package}"


def signature(target: str) -> dict[str, Key]:
    """Keys of the class or function that ``target`` names.

    Args:
        target: dotted path inside one of our rooms or a package that the user allowed, e.g.
            ``lightning_modules.regularizers.saf.SAF``.

    Raises:
        UnknownTarget: with what is wrong and what is allowed.
    """
    if not _is_readable(target):
        raise UnknownTarget(f"{target!r} is not a part of this library; targets start with {', '.join(ROOMS)}")
    module, _, name = target.rpartition(".")
    return _keys_of(module, name, target)


def root_signature(target: str) -> dict[str, Key]:
    """Keys of a root: those of its function, and where recipes are composed, every other config group."""
    keys = signature(target)
    if "recipe" in keys:
        one, several = (ast.parse(text, mode="eval").body for text in ("Part | None", "dict[str, Part] | None"))
        others = {name: several if holds_several(name) else one for name in groups() if name not in keys}
        keys = keys | {name: Key(annotation, annotation, required=False) for name, annotation in others.items()}
    return keys


def _is_readable(target: str) -> bool:
    return target.split(".")[0] in ROOMS or is_allowed(target)


def matches(annotation: ast.expr, value: Any) -> bool:
    """Whether a plain YAML value fits a type annotation; a type that is not plain means a nested part."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as text):
            return matches(ast.parse(text, mode="eval").body, value)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return matches(left, value) or matches(right, value)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
            stated = range_of(annotation)
            return matches(inner, value) if stated is None else stated.holds(value)
        case ast.Name(id="Any"):
            return not holds_part(value)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.Name(id="list"):
            return isinstance(value, list) and not holds_part(value)
        case ast.Name(id="dict"):
            return isinstance(value, dict) and not holds_part(value)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=slice_):
            choices = slice_.elts if isinstance(slice_, ast.Tuple) else [slice_]
            same = [choice for choice in map(ast.literal_eval, choices) if type(choice) is type(value)]  # True == 1
            return value in same
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(matches(item, element) for element in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            plain = isinstance(value, dict) and TARGET not in value
            return plain and all(matches(item, element) for element in value.values())
    return is_part(value)


def is_part(value: Any) -> bool:
    """Whether a value is a dict that names its own target."""
    return isinstance(value, dict) and isinstance(value.get(TARGET), str)


def holds_part(value: Any) -> bool:
    """Whether there is a target anywhere in a value."""
    if isinstance(value, dict):
        return TARGET in value or any(holds_part(item) for item in value.values())
    return isinstance(value, list) and any(holds_part(item) for item in value)


@cache
def _keys_of(module: str, name: str, target: str) -> dict[str, Key]:
    """Keys of a function or of an ``__init__``, and those of the base class where that passes ``**`` on."""
    tree = _tree(module, target)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _keys(node, target)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _keys_of_class(node, tree, module, target)
    raise UnknownTarget(f"{target!r}: {module.replace('.', '/')}.py defines no {name!r}")


def _keys_of_class(node: ast.ClassDef, tree: ast.Module, module: str, target: str) -> dict[str, Key]:
    own = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    inherited: dict[str, Key] = {}
    if not own or own[0].args.kwarg:
        for base in node.bases:
            if isinstance(base, ast.Name) and (found := _imported(tree, base.id, module)):
                inherited |= _keys_of(*found, target)
    return inherited | (_keys(own[0], target) if own else {})


def _imported(tree: ast.Module, name: str, module: str) -> tuple[str, str] | None:
    """Where a base class comes from, if its source may be read."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, name
        if isinstance(node, ast.ImportFrom) and (source := import_source(node, module)):
            for alias in node.names:
                if (alias.asname or alias.name) == name and _is_readable(f"{source}.{alias.name}"):
                    return source, alias.name
    return None


def _tree(module: str, target: str) -> ast.Module:
    path = source_file(module)
    if path is None:
        ours = module.split(".")[0] in ROOMS
        where = "" if ours else f"; {module} was looked for on sys.path and in the folder this was started in"
        raise UnknownTarget(f"{target!r}: there is no {module.replace('.', '/')}.py{where}")
    try:
        return tree_of(path)
    except ValueError as error:
        raise UnknownTarget(f"{target!r}: {error}") from error


def _keys(function: ast.FunctionDef, target: str) -> dict[str, Key]:
    found = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        annotation = argument.annotation or ast.Name("Any")
        try:
            for node in ast.walk(annotation):
                if isinstance(node, ast.expr):
                    range_of(node)
        except ValueError as error:
            raise UnknownTarget(f"{target!r}: the annotation of {argument.arg}: {error}") from error
        found[argument.arg] = Key(annotation, without_ranges(annotation), required=default is None)
    return found
