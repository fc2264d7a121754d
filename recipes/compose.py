"""Words of the command line -> one plain, validated configuration. Imports Hydra and OmegaConf, never torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.allow import is_allowed
from recipes.catalogue import CONFIGS, LIST_GROUPS
from recipes.overrides import SEATS, Overrides
from recipes.plain import OWN_INTERPOLATION, value_problems
from recipes.recipe_file import read_recipe
from recipes.signature import TARGET, is_part
from recipes.validate import ConfigError, part_name_problems, problems_of
from recipes.words import set_words


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
            composed = cast(dict[str, Any], OmegaConf.to_container(compose(root, overrides=overrides.choices)))
        composed |= {group: _afresh(group, choice) for group, choice in overrides.swapped.items()}
        unread = set_words(composed, overrides.values, target)
        overrides.problems += unread.values()
        if refused := value_problems(composed, interpolation=OWN_INTERPOLATION):
            raise ConfigError([*overrides.problems, *refused])
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(composed), resolve=True))
        if refused := value_problems(config):  # an escaped ${...} comes out of the resolution as one
            raise ConfigError([*overrides.problems, *refused])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*overrides.problems, _first_line(error)]) from error
    if overrides.recipe is not None:
        config["recipe"] = overrides.recipe
    problems = overrides.problems + _remove(config, overrides) + _absent_parts(config, overrides)
    problems += part_name_problems(config)
    missing = tuple(f"{path} must be given" for path in unread)  # of a key whose word cannot be read it is no news
    problems += [line for line in problems_of(config, target) if not line.startswith(missing)]
    if problems:
        raise ConfigError(problems)
    return config


def to_yaml(config: dict[str, Any]) -> str:
    """The configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def _afresh(group: str, choice: str) -> Any:
    """A part chosen on the command line: its own defaults, not the recipe's settings, which were meant for the part it
    replaces (an SGD learning rate is none for AdamP)."""
    if is_allowed(choice):
        return {TARGET: choice}
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{choice}.yaml"))


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
        elif later := [other.path for other in overrides.values if other.lies_below(path)]:
            problems.append(f"~{path} removes what {', '.join(later)} sets; write one of the two")
        else:
            del node[last]
    return problems


def _absent_parts(config: dict[Any, Any], overrides: Overrides) -> list[str]:
    """Keys of parts that are not chosen are taken out: silently what a recipe set for a part that was replaced, with
    a message what the command line says."""
    problems, typed = [], {word.path for word in overrides.values}
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
