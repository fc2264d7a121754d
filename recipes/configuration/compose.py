"""Words of the command line -> one plain, validated configuration. Imports OmegaConf, never torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.configuration.catalogue import holds_several
from recipes.configuration.layers import key_of
from recipes.configuration.overrides import Overrides
from recipes.configuration.plain import OWN_INTERPOLATION, value_problems
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import is_part, root_signature
from recipes.configuration.validate import part_name_problems, problems_of
from recipes.configuration.words import set_words


def compose_config(
    words: Sequence[str], root: str = "train", target: str = "recipes.building.assemble.assemble"
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
    composed = overrides.layers.config()
    try:
        composed.pop("stages", None)  # each is a configuration of its own: recipes.configuration.stages
        unread = set_words(composed, overrides.values, target)
        overrides.problems += unread.values()
        if refused := value_problems(composed, interpolation=OWN_INTERPOLATION):
            raise ConfigError([*overrides.problems, *refused])
        config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(composed), resolve=True))
        if refused := value_problems(config):  # an escaped ${...} comes out of the resolution as one
            raise ConfigError([*overrides.problems, *refused])
    except OmegaConfBaseException as error:
        raise ConfigError([*overrides.problems, _first_line(error)]) from error
    if overrides.recipe is not None:
        config["recipe"] = overrides.recipe
    order = [*root_signature(target)]
    config = dict(sorted(config.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
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


def _remove(config: dict[str, Any], overrides: Overrides) -> list[str]:
    """Take out what ``~`` names, wherever it came from; a removed key takes the default of its signature."""
    problems = []
    for word in overrides.removed:
        path = word.path.replace("/", ".")
        *parents, last = path.split(".")
        node: Any = config
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not parents:
            problems.append(f"~{path}: only parts and keys of parts can be removed, as ~GROUP, ~GROUP.KEY")
        elif not isinstance(node, dict) or last not in node:
            problems.append(f"~{word.path}: there is no {path} to remove")
        elif "/" in word.path:
            problems.append(f"~{word.path}: write ~{path}")
        elif later := [other.path for other in overrides.values if other.lies_below(path)]:
            problems.append(f"~{path} removes what {', '.join(later)} sets; write one of the two")
        else:
            del node[last]
    return problems


def _absent_parts(config: dict[Any, Any], overrides: Overrides) -> list[str]:
    """Keys of parts that are not chosen are taken out, with a message about the words that set them."""
    problems, typed = [], {word.path for word in overrides.values}
    for group, choice in overrides.layers.choices.items():
        node = config.get(group)
        if not isinstance(node, dict):
            continue
        if holds_several(group):
            for name in [name for name, part in node.items() if not is_part(part)]:
                chosen = f"{group}.{name}" in typed and name in map(key_of, choice or [])
                problems.append(
                    f"{group}.{name} is a part, not a value; to remove it write ~{group}.{name}"
                    if chosen
                    else f"{group}.{name} is not part of this configuration; add it with +{group}={name}"
                )
                del node[name]
        elif choice is None and node and not is_part(node):
            problems.append(f"{group}.{next(iter(node))}: no {group} is chosen; choose one with {group}=NAME")
            config[group] = None
    return problems


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
