"""What a checkpoint says about itself, checked: configuration, class names and preprocessing may come from anyone."""

from __future__ import annotations

import re
from typing import Any

from recipes.configuration.moved import read_stored
from recipes.configuration.plain import value_problems
from recipes.configuration.problems import ConfigError
from recipes.configuration.validate import group_problems

STORED = ("backbone", "head", "surgery", "data")  # groups of a stored configuration that are built again
STORED_IF_ANY = ("noise",)
MAX_CLASSES, MAX_NAME, MAX_SIDE = 100_000, 1000, 16_384
SIZES = {"image_size": int, "resize_size": int, "interpolation": str}


def stored_config(content: dict[str, Any], where: str = "the checkpoint") -> dict[str, Any]:
    """The configuration a checkpoint holds as YAML text, as a plain dict.

    Args:
        content: what was read.
        where: what a message calls it.

    Raises:
        ConfigError: parts that are none of their group, values that are not plain, a recipe's name that is none, or
            class names or preprocessing of another form.
    """
    try:
        config = read_stored(content["config"])
    except (KeyError, ValueError) as error:
        reason = "there is none" if isinstance(error, KeyError) else str(error)
        raise ConfigError([f"{where} holds no configuration that can be read ({reason})"]) from error
    if not isinstance(config, dict) or type(config.get("seed")) is not int or not 0 <= config["seed"] < 2**32:
        raise ConfigError([f"{where} holds no configuration of a run: its groups and its seed are missing"])
    stored = {group: config.get(group) for group in STORED}
    stored |= {group: config[group] for group in STORED_IF_ANY if config.get(group) is not None}
    problems = value_problems(config) or [x for group, node in stored.items() for x in group_problems(group, node)]
    if not re.fullmatch(r"\w[\w.-]{0,99}", str(config.get("recipe"))):  # it becomes the name of a file
        problems.append(f"recipe={str(config.get('recipe'))[:200]!r} is no name of a recipe")
    if problems:
        raise ConfigError([f"in the configuration of {where}, {line}" for line in problems])
    if problems := [*class_problems(content.get("classes")), *preprocessing_problems(content.get("preprocessing"))]:
        raise ConfigError([f"in {where}, {line}" for line in problems])
    return config


def without_download(data: dict[str, Any]) -> dict[str, Any]:
    """A stored data part that fetches nothing: a download is started by who types it, not by a file."""
    return {**data, "download": False} if "download" in data else data


def class_problems(classes: Any) -> list[str]:
    """What is wrong with class names that were read."""
    if not isinstance(classes, list) or not 1 <= len(classes) <= MAX_CLASSES:
        return [f"classes must be a list of 1 to {MAX_CLASSES:,} names, got {str(classes)[:80]}"]
    wrong = [name for name in classes if not isinstance(name, str) or len(name) > MAX_NAME]
    if wrong:
        return [f"class names are text of at most {MAX_NAME} characters, got {str(wrong[0])[:80]!r}"]
    return []


def preprocessing_problems(stated: Any) -> list[str]:
    """What is wrong with a description of preprocessing that was read."""
    if not isinstance(stated, dict):
        return [f"preprocessing must be a dict, got {str(stated)[:80]}"]
    wrong = [f"preprocessing.{key} must be of type {kind.__name__}, got {str(stated.get(key))[:80]!r}"
             for key, kind in SIZES.items() if type(stated.get(key)) is not kind]  # fmt: skip
    sizes = [] if wrong else [key for key in ("image_size", "resize_size") if not 1 <= stated[key] <= MAX_SIDE]
    wrong += [f"preprocessing.{key}={stated[key]} must lie in 1..{MAX_SIDE}" for key in sizes]
    return wrong or value_problems(stated, "preprocessing")
