"""Recipe files: plain YAML that chooses parts and sets their keys, and can do nothing else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from recipes.catalogue import CONFIGS, LIST_GROUPS, groups, options
from recipes.plain import OWN_INTERPOLATION, read_yaml, value_problems
from recipes.validate import ConfigError

#: Decided by who starts a run, not by its method.
TYPED_ONLY = {"output": "where runs are left", "name": "the name of a run", "hydra": "Hydra's own settings"}


def read_recipe(recipe: str) -> dict[str, Any]:
    """The content of ``configs/recipe/RECIPE.yaml``, checked together with the recipes it builds on.

    Raises:
        ConfigError: every problem of these files.
    """
    content, found = _read(CONFIGS / "recipe" / f"{recipe}.yaml")
    if problems := [*found, *_problems_below(content, (recipe,))]:
        raise ConfigError(problems)
    return content


def parents_of(content: dict[str, Any]) -> list[str]:
    """The recipes that a recipe builds on."""
    return [entry for entry in content.get("defaults") or [] if isinstance(entry, str) and entry != "_self_"]


def _problems_below(content: dict[str, Any], chain: tuple[str, ...]) -> list[str]:
    problems = list[str]()
    for parent in parents_of(content):
        if parent in chain:
            return [f"recipe {chain[0]} builds on itself: {' -> '.join((*chain, parent))}"]
        if parent in options("recipe"):
            inner, found = _read(CONFIGS / "recipe" / f"{parent}.yaml")
            problems += [*found, *_problems_below(inner, (*chain, parent))]
    return problems


@cache
def _read(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Content and problems of one file; no content where there are problems."""
    try:
        text = path.read_text(encoding="utf-8")
        content = read_yaml(text) or {}
    except ValueError as error:
        return {}, (f"recipe {path.stem}: {error}",)
    if not isinstance(content, dict):
        return {}, (f"recipe {path.stem} must be a mapping of groups, got a {type(content).__name__}",)
    packages = [
        found for found in re.findall(r"^#\s*@package\s+(\S+)", text, flags=re.MULTILINE) if found != "_global_"
    ]
    problems = [f"@package {found}: a recipe is # @package _global_" for found in packages]
    problems += [
        f"{key} ({what}) is not part of a recipe; leave it out" for key, what in TYPED_ONLY.items() if key in content
    ]
    problems += _problems_of_defaults(content.get("defaults") or [])
    problems += value_problems(content, interpolation=OWN_INTERPOLATION)
    return ({}, tuple(f"recipe {path.stem}: {line}" for line in problems)) if problems else (content, ())


def _problems_of_defaults(defaults: Any) -> list[str]:
    """What Hydra would look up elsewhere: files outside configs/, its own groups, other packages."""
    if not isinstance(defaults, list):
        return [f"defaults must be a list, got {defaults!r:.80}"]
    return [problem for entry in defaults if (problem := _problem_of_entry(entry))]


def _problem_of_entry(entry: Any) -> str | None:
    if isinstance(entry, str):
        found = entry == "_self_" or entry in options("recipe")
        return None if found else f"defaults: {entry!r} is no recipe; recipes are {', '.join(options('recipe'))}"
    if not isinstance(entry, dict) or len(entry) != 1:
        return f"defaults: {entry!r:.80} is neither a recipe nor 'override /GROUP: NAME'"
    [(key, choice)] = entry.items()
    group = str(key).removeprefix("override /")
    known = sorted({*groups(), *LIST_GROUPS} - {"recipe"})
    if key != f"override /{group}" or group not in known:
        return f"defaults: {key!r:.80} is not 'override /GROUP', with a GROUP of {', '.join(known)}"
    names = choice if isinstance(choice, list) else [] if choice is None else [choice]
    wrong = [name for name in names if name not in options(group)]
    return f"defaults: {group}={wrong[0]!r:.80} is not known; allowed: {', '.join(options(group))}" if wrong else None
