"""Choices and settings in layers: the root, the recipes from the ground up, the command line; one rule for all.

A layer first chooses parts, then sets keys. A part that is chosen in place of another starts from its own defaults, and
what earlier layers set for the other goes with it: a learning rate of SGD is none for AdamP. What is set for the same
part stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_modules.names import unknown_name
from recipes.configuration.allow import is_allowed
from recipes.configuration.catalogue import (
    Choice,
    backbone_names,
    group_of,
    holds_several,
    is_backbone,
    options,
    read_option,
)
from recipes.configuration.signature import TARGET, is_part, outside_hint


class Layers:
    """What the layers up to now choose and set.

    Args:
        choices: of every group, to start with.

    Attributes:
        choices: {group: name of a part, names, or None}.
        settings: keys of the root, and below the name of its group, those of each part; without defaults of parts.
    """

    def __init__(self, choices: dict[str, Choice]) -> None:
        self.choices = dict(choices)
        self.settings: dict[str, Any] = {}

    def choose(self, group: str, choice: Choice) -> None:
        """Choose another part, or other parts, for a group."""
        held = self.settings.get(group)
        if isinstance(choice, list):
            gone = {key_of(name) for name in self.choices[group] or [] if name not in choice}
            stay = {key_of(name) for name in choice} - gone
            if isinstance(held, dict):
                self.settings[group] = {name: keys for name, keys in held.items() if name in stay}
        elif choice != self.choices[group] and not (choice and group_of(group).keeps_settings):
            self.settings.pop(group, None)
        self.choices[group] = choice

    def append(self, group: str, names: list[str]) -> None:
        """Choose parts beside those that are there."""
        self.choices[group] = list(dict.fromkeys([*(self.choices[group] or []), *names]))

    def set(self, keys: dict[str, Any]) -> None:
        """Set keys of the root and of parts."""
        self.settings = merged(self.settings, keys)

    def holds(self, group: str) -> bool:
        """Whether there is a part in a group."""
        return bool(self.choices[group] or self.settings.get(group))

    def strays(self) -> Iterator[tuple[str, str]]:
        """Group and key of what is set for parts that are not chosen."""
        for group, choice in self.choices.items():
            held = self.settings.get(group)
            if isinstance(choice, list) and isinstance(held, dict):
                chosen = [key_of(name) for name in choice]
                yield from ((group, name) for name, keys in held.items() if name not in chosen and not is_part(keys))
            elif choice is None and isinstance(held, dict) and held and not is_part(held):
                yield group, next(iter(held))

    def config(self) -> dict[str, Any]:
        """The configuration: every part with its defaults under what is set for it; no group without a part."""
        config = dict(self.settings)
        for group, choice in self.choices.items():
            if choice:
                part = _with_defaults(group, choice)
                config[group] = merged(part, config[group]) if group in config else part
        return config


def choice_problem(group: str, name: str) -> str | None:
    """Why a name is no choice for a group; None where it is one."""
    if name in options(group) or is_allowed(name) or (group == "backbone" and is_backbone(name)):
        return None
    choices = {*options(group), *(backbone_names() if group == "backbone" else ())}
    foreign = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.[A-Z]\w*", name)
    return unknown_name(group, name, choices) + (outside_hint(name) if foreign else "")


def choice_problems(group: str, names: Sequence[str], beside: Sequence[str] = ()) -> list[str]:
    """Why names are no choices for a group, or not together, or not beside those that are there."""
    keys = [key_of(name) for name in [*names, *(name for name in beside if name not in names)]]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    return [
        *(problem for name in names if (problem := choice_problem(group, name))),
        *(f"{group}: two parts are called {key}; choose one of them, or rename your class" for key in twice),
    ]


def key_of(name: str) -> str:
    """The name of a part among several: for one of the user's own that of its class, as the files here are named.

    Example:
        >>> key_of("my_package.losses.ConfidencePenalty"), key_of("saf")
        ('confidence_penalty', 'saf')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower() if "." in name else name


def merged(old: Any, new: Any) -> Any:
    """A dict merged into another, key by key; anything else, and a part with another target, replaces what was."""
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get(TARGET, old.get(TARGET)) != old.get(TARGET):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def _with_defaults(group: str, choice: str | list[str]) -> dict[str, Any]:
    """A choice as a part, or as parts by name, with defaults alone."""
    if isinstance(choice, str):
        return _part(group, choice)
    return {key_of(name): _part(group, name) for name in choice}


def _part(group: str, name: str) -> dict[str, Any]:
    if name in options(group):
        content = read_option(group, name)
        return content[name] if holds_several(group) else content
    if is_allowed(name):
        return {TARGET: name}
    return read_option("backbone", "timm") | {"name": name}  # what else is a choice is a backbone
