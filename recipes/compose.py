"""Words of the command line -> one plain, validated configuration. Imports Hydra and OmegaConf, never torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recipes.allow import is_allowed
from recipes.catalogue import CONFIGS, LIST_GROUPS
from recipes.overrides import SEATS, Overrides
from recipes.plain import OWN_INTERPOLATION, value_problems
from recipes.recipe_file import read_recipe
from recipes.signature import TARGET, is_part
from recipes.validate import ConfigError, part_name_problems, problems_of


def compose_config(
    words: Sequence[str], root: str = "train", target: str = "recipes.assemble.assemble"
) -> dict[str, Any]:
    """Compose and validate.

    Args:
        words: ``key=value`` words of the command line.
        root: file under configs/ that lists the groups.
        target: whose signature the root is.

    Returns:
        A plain dict that nothing else holds a reference to.

    Raises:
        ConfigError: every problem that was found.
    """
    overrides = Overrides(words, root)
    if overrides.recipe is None and root == "train":
        raise ConfigError(overrides.problems)
    if overrides.recipe is not None:
        read_recipe(overrides.recipe)  # refuses what Hydra would do for it
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = compose(root, overrides=overrides.words)
        for group in overrides.swapped:
            with open_dict(composed):
                composed[group] = _afresh(group, overrides)
        if refused := value_problems(OmegaConf.to_container(composed), interpolation=OWN_INTERPOLATION):
            raise ConfigError([*overrides.problems, *refused])
        config = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*overrides.problems, _first_line(error)]) from error
    config = cast(dict[str, Any], config)
    if overrides.recipe is not None:
        config["recipe"] = overrides.recipe
    problems = overrides.problems + _remove(config, overrides) + _absent_parts(config, overrides)
    unread = tuple(f"{name} must be given" for name in overrides.unread)
    problems += part_name_problems(config)
    problems += [line for line in problems_of(config, target) if not line.startswith(unread)]
    if problems:
        raise ConfigError(problems)
    return config


def to_yaml(config: dict[str, Any]) -> str:
    """The configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def _afresh(group: str, overrides: Overrides) -> Any:
    """A part chosen on the command line: its own defaults and the command line's keys, not the recipe's settings,
    which were meant for the part it replaces (an SGD learning rate is none for AdamP)."""
    choice = overrides.swapped[group]
    own = is_allowed(choice)
    node = OmegaConf.create({TARGET: choice}) if own else OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    for name, value in overrides.values:
        if name.startswith(f"{group}."):
            OmegaConf.update(node, name.removeprefix(f"{group}."), value, force_add=True)
    return node


def _remove(config: dict[str, Any], overrides: Overrides) -> list[str]:
    """Take out what ``~`` names, wherever it came from; a removed key takes the default of its signature."""
    problems = []
    for word in overrides.removed:
        path = word.replace("/", ".")
        *parents, last = path.split(".")
        node: Any = config
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not parents:
            problems.append(f"~{path}: only parts and keys of parts can be removed, as ~GROUP, ~GROUP.KEY")
        elif not isinstance(node, dict) or last not in node:
            problems.append(f"~{word}: there is no {path} to remove")
        elif "/" in word:
            problems.append(f"~{word}: write ~{path}")
        elif later := [name for name, _ in overrides.values if name == path or name.startswith(f"{path}.")]:
            problems.append(f"~{path} removes what {', '.join(later)} sets; write one of the two")
        else:
            del node[last]
    return problems


def _absent_parts(config: dict[Any, Any], overrides: Overrides) -> list[str]:
    """Keys of parts that are not chosen are taken out: silently what a recipe set for a part that was replaced, with
    a message what the command line says."""
    problems, typed = [], {name for name, _ in overrides.values}
    for group, node in config.items():
        if isinstance(node, dict) and group in LIST_GROUPS:
            for name in [name for name, part in node.items() if not is_part(part)]:
                chosen = name in (overrides.chosen(group) or [])
                if chosen and f"{group}.{name}" in typed:
                    problems.append(f"{group}.{name} is a part, not a value; to remove it write ~{group}.{name}")
                elif any(f"{key}.".startswith(f"{group}.{name}.") for key in typed):
                    problems.append(f"{group}.{name} is not part of this configuration; add it with +{group}={name}")
                del node[name]
        elif group in SEATS and isinstance(node, dict) and node and not is_part(node):
            if any(key.startswith(f"{group}.") for key in typed):
                problems.append(f"{group}.{next(iter(node))}: no {group} is chosen; choose one with {group}=NAME")
            config[group] = None
        elif group in LIST_GROUPS and node is None:
            config[group] = {}
    return problems


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
