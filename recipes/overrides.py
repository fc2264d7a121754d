"""What the words of the command line choose and remove: checked one by one, with all problems collected.

key=value                    a key, kept for when the parts are known
group=NAME                   choose a part          group=[A,B]   several, where a group holds several
+regularizer=[mesa,nd]       append to the recipe's
~attack                      remove
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml

from lightning_modules.names import unknown_name
from recipes.allow import is_allowed
from recipes.catalogue import CONFIGS, LIST_GROUPS, is_backbone, options
from recipes.recipe_file import read_recipe
from recipes.signature import TARGET, outside_hint
from recipes.values import SeveralValues, read_value
from recipes.words import Word, split_words

#: Where a run executes is no part of its method: what a recipe sets here (its length) stays when it is swapped.
KEEPS_SETTINGS = ("trainer",)
SEATS = ("noise", "surgery", "attack", "gradient", "reweighting", "mixing")
#: What stands behind the name of a group: the name of a part, or several.
CHOICE = ast.parse("list[str]", mode="eval").body


class Overrides:
    """Parses words into choices for Hydra, keys to set, and problems.

    Attributes:
        problems: messages about words that cannot be used.
        recipe: the chosen recipe, None when its name is wrong.
        choices: Hydra overrides that choose the parts.
        values: the words that set keys.
        swapped: groups of one part whose option differs from the recipe's.
        removed: dotted keys and parts that ``~`` takes out.
    """

    def __init__(self, words: Sequence[str], root: str = "train") -> None:
        parsed, self.problems = split_words(words)
        defaults = root_defaults(root)
        self.recipe: str | None = defaults.get("recipe")
        self.values: list[Word] = []
        self.swapped: dict[str, str] = {}
        self.removed: list[str] = []
        self._groups: dict[str, Any] = {}
        self._defaults = defaults
        for word in sorted(parsed, key=lambda word: (word.path != "recipe", word.sign == "+")):
            self._read(word)

    @property
    def choices(self) -> list[str]:
        """An empty seat that stays empty needs no word, and Hydra could not remove it."""
        groups = [item for item in self._groups.items() if item[1] is not None or self._own(item[0]) is not None]
        return [_spell(name, value) for name, value in groups]

    def chosen(self, group: str) -> Any:
        """The choice for a group: the command line's, else the recipe's."""
        return self._groups[group] if group in self._groups else self._own(group)

    def _own(self, group: str) -> Any:
        return _choice(self.recipe, group, self._defaults.get(group))

    def _read(self, word: Word) -> None:
        if re.split(r"[./]", word.path)[0] == "hydra":
            self.problems.append(f"{word.shown}: Hydra's own settings are not part of a run; see --help")
        elif word.path in self._defaults or word.path in SEATS:
            self._read_group(word.path, word)
        elif word.sign == "~":
            self.removed.append(word.path)
        elif "/" in word.path:
            self.problems.append(f"{word.shown}: write {word.path.replace('/', '.')}={word.text}")
        else:
            self.values.append(word)

    def _read_group(self, group: str, word: Word) -> None:
        several = group in LIST_GROUPS
        current = self.chosen(group)
        if word.sign == "~":
            if not current:
                self.problems.append(f"~{group}: the recipe has no {group} to remove")
            elif group not in (*LIST_GROUPS, *SEATS):
                self.problems.append(f"~{group}: every run has a {group}; replace it with {group}=NAME")
            else:
                self._groups[group] = [] if several else None
                self.swapped.pop(group, None)
            return
        names = self._names(group, word)
        if names is None:
            return
        if word.sign == "+" and not several and current:
            self.problems.append(
                f"{word.shown}: {group} holds one part, and the recipe has {current}; replace it with "
                f"{group}={names[0] if names else 'NAME'}"
            )
            return
        self._choose(group, names, [*(current or [])] if several and word.sign == "+" else [], word)

    def _names(self, group: str, word: Word) -> list[str] | None:
        """The parts that a word names; None where it cannot be used."""
        several = group in LIST_GROUPS
        try:
            value = read_value(word.text, CHOICE)
        except SeveralValues:
            parts = f"for several parts write {group}=[A,B]; " if several else ""
            self.problems.append(f"{word.shown} names several values: {parts}for one run each add -m")
            return None
        except ValueError as error:
            self.problems.append(f"cannot read {word.shown}: {error}")
            return None
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            self.problems.append(f"{word.shown}: {group} holds one part; write {group}=NAME")
        elif value is None and group not in (*LIST_GROUPS, *SEATS):
            self.problems.append(f"{group}=null: every run has a {group}; replace it with {group}=NAME")
        else:
            names = value if isinstance(value, list) else [value if isinstance(value, str) else word.text.strip()]
            again = next((name for name in names if names.count(name) > 1), None)
            if again is None:
                return [] if value is None else names
            self.problems.append(f"{word.shown} names {again} twice; write it once")
        return None

    def _choose(self, group: str, names: list[str], before: list[str], word: Word) -> None:
        known = [name for name in names if self._known(group, name)]
        if len(known) < len(names):
            return
        if group in LIST_GROUPS:
            own = [name for name in known if is_allowed(name)]
            self._groups[group] = list(dict.fromkeys([*before, *(name for name in known if name not in own)]))
            for name in own:
                self.values.append(Word(word.typed, "", f"{group}.{key_of(name)}.{TARGET}", name))
        elif known and is_allowed(known[0]):
            self.swapped[group] = known[0]
        elif group == "backbone" and known and known[0] not in options("backbone"):
            self._groups[group] = self.swapped[group] = "timm"
            self.values.append(Word(word.typed, "", "backbone.name", known[0]))
        elif group == "recipe" and known:
            self.recipe = self._groups["recipe"] = known[0]
        elif known or self.chosen(group):
            self._groups[group] = known[0] if known else None
            self.swapped.pop(group, None)
            if known and known[0] != self._own(group) and group not in KEEPS_SETTINGS:
                self.swapped[group] = known[0]

    def _known(self, group: str, name: str) -> bool:
        if name in options(group) or (group == "backbone" and is_backbone(name)):
            return True
        if group != "recipe" and is_allowed(name):
            return True
        choices = set(options(group))
        if group == "backbone":
            from recipes.catalogue import backbone_names

            choices |= backbone_names()
        hint = f"; to remove it write ~{group}" if group in (*LIST_GROUPS, *SEATS) else ""
        if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.[A-Z]\w*", name):
            hint = outside_hint(name) or hint
        self.problems.append(unknown_name(group, name, choices) + hint)
        if group == "recipe":
            self.recipe = None
        return False


def key_of(target: str) -> str:
    """The name of a part of one's own among several: that of its class, as the files here are named.

    Example:
        >>> key_of("my_package.losses.ConfidencePenalty")
        'confidence_penalty'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", target.rpartition(".")[2]).lower()


def _spell(group: str, value: Any) -> str:
    """Hydra's own words for a choice."""
    if value is None:
        return f"~{group}"
    return f"{group}=[{','.join(value)}]" if isinstance(value, list) else f"{group}={value}"


@cache
def root_defaults(root: str) -> dict[str, Any]:
    """The choice of every group in a root file."""
    entries = yaml.safe_load((CONFIGS / f"{root}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {name: choice for entry in entries if isinstance(entry, dict) for name, choice in entry.items()}


def _choice(recipe: str | None, group: str, default: Any) -> Any:
    """What a recipe (or the recipe it builds on) chose for a group."""
    if recipe is None or recipe not in options("recipe"):
        return default
    content = read_recipe(recipe)
    found = default
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            found = _choice(entry, group, default)
        elif isinstance(entry, dict):
            found = entry.get(f"override /{group}", found)
    return found if isinstance(found, list) or found is None or group not in LIST_GROUPS else [found]
