"""Checks a composed configuration against the signatures of its parts, and finds every problem."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from recipes.configuration.annotation import allowed
from recipes.configuration.catalogue import groups, holds_several
from recipes.configuration.signature import (
    TARGET,
    Key,
    UnknownTarget,
    check_target,
    is_part,
    matches,
    place_inside,
    place_of,
    root_signature,
    signature,
)

MISSING = "???"


def problems_of(node: dict[str, Any], target: str, path: str = "") -> list[str]:
    """Unknown keys, wrong types and missing values of one part and the parts inside it.

    Args:
        node: plain dict of the part, or of a root.
        target: what it configures; the parts of a root are its groups, each with targets of its own folder only.
        path: dotted path of the node, for messages; empty for a root, which names no target of its own.
    """
    try:
        keys = signature(target) if path else root_signature(target)
    except UnknownTarget as error:
        return [f"{path or 'config'}: {error}"]
    unknown = [str(name) for name in node if name not in keys and not (name == TARGET and path)]
    inner = {} if path else _keys_below({name: node[name] for name in keys if name in node})
    problems = [unknown_key(join(path, name), list(keys), inner) for name in unknown]
    for name, key in keys.items():
        where = join(path, name)
        if name not in node:
            if key.required:
                problems.append(f"{where} must be given: {where}=VALUE ({key.type_name})")
        elif node[name] == MISSING:
            problems.append(f"{where} must be given: {where}=VALUE ({key.type_name})")
        elif not matches(key.stated, node[name]):
            problems.append(f"{where}={node[name]!r} {_why_not(key, name, node[name])}")
        else:  # what has the right type holds parts only where its annotation allows them
            place = place_inside(target) if path else place_of(name)
            problems += _parts_inside(node[name], where, place)
    return problems


def _why_not(key: Key, name: str, value: Any) -> str:
    """What is wrong with a value of the right type, and with any other."""
    if matches(key.annotation, value):
        return f"is out of range; allowed: {allowed(key.stated, name)}"
    return f"has the wrong type; allowed: {key.type_name}"


def part_problems(node: Any, path: str, *places: str) -> list[str]:
    """What is wrong with a part whose target comes from a file; a target outside ``places`` is all that is said."""
    if not is_part(node):
        return [f"{path} must be a part: a dict with {TARGET}, got {node!r}"]
    try:
        check_target(node[TARGET], *places)
    except UnknownTarget as error:
        return [f"{path}: {error}"]
    return problems_of(node, node[TARGET], path)


def part_name_problems(config: dict[str, Any]) -> list[str]:
    """Names of parts become tags, keys of results and module names: letters, digits and underscores."""
    held = {group: config.get(group) for group in groups() if holds_several(group)}
    names = [(group, name) for group, parts in held.items() if isinstance(parts, dict) for name in parts]
    return [
        f"{group}.{name!s:.80}: the name of a part is letters, digits and _, at most 64, and starts with a letter"
        for group, name in names
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", str(name))
    ]


def group_problems(group: str, value: Any) -> list[str]:
    """``part_problems`` of a config group: of its part, or of every part in it."""
    if not holds_several(group):
        return part_problems(value, group, place_of(group))
    if not isinstance(value, dict | None):
        return [f"{group} must hold parts by name, got {value!r}"]
    if problems := part_name_problems({group: value}):
        return problems
    parts = (value or {}).items()
    return [line for name, part in parts for line in part_problems(part, join(group, str(name)), place_of(group))]


def _keys_below(node: dict[str, Any], path: str = "") -> dict[str, list[str]]:
    """{name: dotted paths} of the keys of every part: those that are set, and those that could be."""
    found: dict[str, list[str]] = {}
    for name, value in node.items():
        if not isinstance(value, dict):
            continue
        where = join(path, str(name))
        try:
            keys = [*signature(value[TARGET])] if is_part(value) else []
        except UnknownTarget:
            keys = []
        for key in dict.fromkeys([*keys, *(str(key) for key in value if key != TARGET)]):
            found.setdefault(key, []).append(join(where, key))
        for key, paths in _keys_below(value, where).items():
            found.setdefault(key, []).extend(paths)
    return found


def _parts_inside(value: Any, path: str, place: str) -> list[str]:
    if is_part(value):
        return part_problems(value, path, place)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [line for name, item in items for line in _parts_inside(item, join(path, str(name)), place)]


def unknown_key(path: str, names: list[str], inner: dict[str, list[str]] | None = None) -> str:
    """Message about a key that does not exist, with the nearest ones that do.

    Args:
        path: dotted path of the key.
        names: keys that exist beside it.
        inner: {name: dotted paths} of keys deeper down, whose path may have been left out.
    """
    parent, _, name = path.rpartition(".")
    inner = inner or {}
    near = [join(parent, close) for close in get_close_matches(name, names, n=3, cutoff=0.5)]
    deep = [name] if name in inner else get_close_matches(name, inner, n=1, cutoff=0.9 if near else 0.7)
    near = [full for close in deep for full in inner[close]] or near
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{path} is not a key{hint} Keys of {parent or 'the root'}: {', '.join(sorted(names)) or 'none'}"


def join(parent: str, name: str) -> str:
    """A dotted path."""
    return f"{parent}.{name}" if parent else name
