"""Recipe files: plain YAML that chooses parts and sets their keys, and can do nothing else.

A recipe is a name under configs/recipe/, or the path of a file of the user's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from recipes.configuration import catalogue
from recipes.configuration.catalogue import Choice, groups, holds_several, options
from recipes.configuration.layers import Layers, choice_problems
from recipes.configuration.plain import OWN_INTERPOLATION, read_yaml, value_problems
from recipes.configuration.problems import ConfigError
from recipes.configuration.validate import part_name_problems

#: Decided by who starts a run, not by its method.
TYPED_ONLY = {
    "output": "where runs are left",
    "name": "the name of a run",
    "recipe": "the file's own name",
    "hydra": "Hydra's own settings",
}
NAME = r"\w[\w.-]{0,99}"  # it becomes the name of a folder


def is_path(recipe: str) -> bool:
    """Whether a recipe is named by the path of its file."""
    return recipe.endswith((".yaml", ".yml"))


def name_of(recipe: str) -> str:
    """The name a run bears: that of the file."""
    return Path(recipe).stem if is_path(recipe) else recipe


def lay_recipe(recipe: str, layers: Layers) -> None:
    """Lay the recipes that a recipe builds on, then itself, over what is there.

    Args:
        recipe: a name, or a path that ends in .yaml or .yml.
        layers: changed in place.

    Raises:
        ConfigError: every problem of these files.
    """
    problems = _problem_of_path(recipe) or _lay(recipe, (), layers)
    if problems:
        raise ConfigError(problems)


def _problem_of_path(recipe: str) -> list[str]:
    path, name = _file(recipe), name_of(recipe)
    if not is_path(recipe) or path.resolve().parent == _file("shipped").resolve().parent:
        return []
    if not path.is_file():
        return [f"recipe={recipe}: there is no such file; without .yaml it is the name of a recipe, see --help"]
    if not re.fullmatch(NAME, name):
        return [f"recipe={recipe}: {name!r} names the folder of its runs; use letters, digits, _, . and -, at most 100"]
    if name in options("recipe"):
        return [f"recipe={recipe}: {name} is a recipe of this library; give the file another name, such as my_{name}"]
    return []


def _lay(recipe: str, chain: tuple[str, ...], layers: Layers) -> list[str]:
    """The problems of a recipe and of those below it; what has any is not laid."""
    name = name_of(recipe)
    if name in chain:
        return [f"recipe {chain[0]} builds on itself: {' -> '.join((*chain, name))}"]
    keys, problems = _read(_file(recipe))
    for entry in keys.pop("defaults", None) or []:
        if isinstance(entry, str):
            problems += _lay(entry, (*chain, name), layers)
            continue
        [(key, choice)] = entry.items()
        group = _group_of(key)
        layers.choose(group, _as_choice(group, choice))
    layers.set(keys)
    if not problems:
        problems = [_stray(group, key) for group, key in layers.strays()]
        problems = [f"recipe {name}: {line}" for line in problems]
    return problems


def _stray(group: str, key: str) -> str:
    how = f"override /{group}: [{key}]" if holds_several(group) else f"override /{group}: NAME"
    return f"{group}.{key} is set, and no such part is chosen; choose it in defaults with '{how}', or leave it out"


def _file(recipe: str) -> Path:
    return Path(os.path.expanduser(recipe)) if is_path(recipe) else catalogue.CONFIGS / "recipe" / f"{recipe}.yaml"


def _as_choice(group: str, choice: Any) -> Choice:
    """A single name stands for a list of one in a group of several."""
    if holds_several(group):
        return choice if isinstance(choice, list) else [] if choice is None else [choice]
    return choice  # type: ignore[no-any-return]


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content and problems of one file; no content where there are problems."""
    try:
        text = path.read_text(encoding="utf-8")
        content = read_yaml(text) or {}
    except (OSError, ValueError) as error:
        return {}, [f"recipe {path.stem}: {error}"]
    if not isinstance(content, dict):
        return {}, [f"recipe {path.stem} must be a mapping of groups, got a {type(content).__name__}"]
    packages = [
        found for found in re.findall(r"^#\s*@package\s+(\S+)", text, flags=re.MULTILINE) if found != "_global_"
    ]
    problems = [f"@package {found}: a recipe is # @package _global_" for found in packages]
    problems += [
        f"{key} ({what}) is not part of a recipe; leave it out" for key, what in TYPED_ONLY.items() if key in content
    ]
    problems += _problems_of_defaults(content.get("defaults") or [])
    problems += value_problems(content, interpolation=OWN_INTERPOLATION) + part_name_problems(content)
    return ({}, [f"recipe {path.stem}: {line}" for line in problems]) if problems else (content, [])


def _problems_of_defaults(defaults: Any) -> list[str]:
    if not isinstance(defaults, list):
        return [f"defaults must be a list, got {defaults!r:.80}"]
    return [problem for entry in defaults for problem in _problems_of_entry(entry)]


def _problems_of_entry(entry: Any) -> list[str]:
    if isinstance(entry, str):
        recipes = options("recipe")
        return [] if entry in recipes else [f"defaults: {entry!r} is no recipe; recipes are {', '.join(recipes)}"]
    if not isinstance(entry, dict) or len(entry) != 1:
        return [f"defaults: {entry!r:.80} is neither a recipe nor 'override /GROUP: NAME'"]
    [(key, choice)] = entry.items()
    group = _group_of(key)
    if key != f"override /{group}" or group not in groups():
        return [f"defaults: {key!r:.80} is not 'override /GROUP', with a GROUP of {', '.join(groups())}"]
    if isinstance(choice, list) and not holds_several(group):
        return [f"defaults: {group} holds one part; write override /{group}: NAME"]
    if choice is None and not catalogue.may_be_empty(group):
        return [f"defaults: every run has a {group}; write override /{group}: NAME"]
    names = choice if isinstance(choice, list) else [] if choice is None else [choice]
    problems = [f"{name!r:.80} is no name" for name in names if not isinstance(name, str)]
    return [f"defaults: {problem}" for problem in problems or choice_problems(group, names)]


def _group_of(key: Any) -> str:
    return str(key).removeprefix("override /")
