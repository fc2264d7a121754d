"""Checks a composed configuration against the signatures of its parts, and finds every problem."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from recipes.signature import UnknownTarget, matches, signature

MISSING = "???"
TARGET = "_target_"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message lists every problem that was found."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def problems_of(node: dict[str, Any], target: str, path: str = "") -> list[str]:
    """Unknown keys, wrong types and missing values of one part and the parts inside it.

    Args:
        node: plain dict of the part.
        target: what it configures.
        path: dotted path of the node, for messages.
    """
    try:
        keys = signature(target)
    except UnknownTarget as error:
        return [f"{path or 'config'}: {error}"]
    problems = [unknown_key(join(path, name), list(keys)) for name in node if name not in keys and name != TARGET]
    for name, key in keys.items():
        where = join(path, name)
        if name not in node:
            if key.required:
                problems.append(f"{where} must be given: {where}=VALUE ({key.type_name})")
        elif node[name] == MISSING:
            problems.append(f"{where} must be given: {where}=VALUE ({key.type_name})")
        elif not matches(key.annotation, node[name]):
            problems.append(f"{where}={node[name]!r} has the wrong type; allowed: {key.type_name}")
    for name, value in node.items():
        if is_part(value):
            problems += problems_of(value, value[TARGET], join(path, name))
        elif isinstance(value, dict) and name in keys:
            for inner, item in value.items():
                if is_part(item):
                    problems += problems_of(item, item[TARGET], join(join(path, name), inner))
    return problems


def is_part(value: Any) -> bool:
    """Whether a value is a dict that names its own target."""
    return isinstance(value, dict) and isinstance(value.get(TARGET), str)


def unknown_key(path: str, names: list[str]) -> str:
    """Message about a key that does not exist, with the nearest ones that do."""
    parent, _, name = path.rpartition(".")
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(join(parent, n) for n in near)}?" if near else "."
    return f"{path} is not a key{hint} Keys of {parent or 'the root'}: {', '.join(sorted(names)) or 'none'}"


def join(parent: str, name: str) -> str:
    """A dotted path."""
    return f"{parent}.{name}" if parent else name
