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
from typing import Any

from recipes.configuration import catalogue
from recipes.configuration.catalogue import Choice, group_of, groups, holds_several, is_backbone, options
from recipes.configuration.layers import Layers, choice_problem, choice_problems
from recipes.configuration.plain import read_yaml
from recipes.configuration.problems import ConfigError
from recipes.configuration.recipe_file import is_path, lay_recipe, name_of
from recipes.configuration.values import SeveralValues, read_value
from recipes.configuration.words import Word, split_words

#: What stands behind the name of a group: the name of a part, or several.
CHOICE = ast.parse("list[str]", mode="eval").body


class Overrides:
    """Lays what words choose over a root and its recipe, and keeps the words that set keys.

    Attributes:
        problems: messages about words that cannot be used.
        recipe: the name of the chosen recipe; None where there is none.
        layers: root, recipe and the choices of the command line.
        values: the words that set keys.
        removed: the words that take out keys and parts with ``~``.

    Raises:
        ConfigError: a recipe that cannot be used.
    """

    def __init__(self, words: Sequence[str], root: str = "train") -> None:
        parsed, self.problems = split_words(words)
        self.values: list[Word] = []
        self.removed: list[Word] = []
        keys, self._empty = _root(root)
        self.layers = Layers(self._empty)
        recipe = keys.pop("recipe", None)
        self.layers.set(keys)
        if recipe is not None:
            for word in [word for word in parsed if word.path == "recipe"]:
                parsed.remove(word)
                recipe = self._chosen_recipe(word, recipe)
            lay_recipe(recipe, self.layers)
        self.recipe = recipe and name_of(recipe)
        for word in sorted(parsed, key=lambda word: word.sign == "+"):
            self._read(word)

    def _chosen_recipe(self, word: Word, current: str) -> str:
        """The recipe that a word names.

        Raises:
            ConfigError: it names none.
        """
        names: list[str] | None = None
        if word.sign == "~":
            self.problems.append("~recipe: every run has a recipe; replace it with recipe=NAME")
        elif word.sign == "+":
            self.problems.append(f"{word.shown}: a run has one recipe, and here it has {current}; write recipe=NAME")
        else:
            names = self._names("recipe", word)
        problem = None if not names or is_path(names[0]) else choice_problem("recipe", names[0])
        if problem or not names:
            raise ConfigError([*self.problems, *([problem] if problem else [])])
        return names[0]

    def _may_be_empty(self, group: str) -> bool:
        return group != "recipe" and not isinstance(self._empty[group], str)

    def _read(self, word: Word) -> None:
        if re.split(r"[./]", word.path)[0] == "hydra":
            self.problems.append(f"{word.shown}: Hydra's own settings are not part of a run; see --help")
        elif word.path in self.layers.choices:
            self._read_group(word.path, word)
        elif word.sign == "~":
            self.removed.append(word)
        elif "/" in word.path:
            self.problems.append(f"{word.shown}: write {word.path.replace('/', '.')}={word.text}")
        else:
            self.values.append(word)

    def _read_group(self, group: str, word: Word) -> None:
        current = self.layers.choices[group]
        if word.sign == "~":
            if not self.layers.holds(group):
                self.problems.append(f"~{group}: the recipe has no {group} to remove")
            elif not self._may_be_empty(group):
                self.problems.append(f"~{group}: every run has a {group}; replace it with {group}=NAME")
            else:
                self.layers.choose(group, [] if holds_several(group) else None)
            return
        names = self._names(group, word)
        if names is None:
            return
        if word.sign == "+" and not holds_several(group) and current:
            self.problems.append(
                f"{word.shown}: {group} holds one part, and the recipe has {current}; replace it with "
                f"{group}={names[0] if names else 'NAME'}"
            )
            return
        beside = current if word.sign == "+" and isinstance(current, list) else []
        problems = choice_problems(group, names, beside)
        hint = f"; to remove it write ~{group}" if self._may_be_empty(group) else ""
        self.problems += [problem if "--allow" in problem else problem + hint for problem in problems]
        if problems:
            return
        if group == "backbone" and names and names[0] not in options("backbone") and is_backbone(names[0]):
            self.values.append(Word(word.typed, "", "backbone.name", names[0]))  # so that it is not said twice
        if not holds_several(group):
            self.layers.choose(group, names[0] if names else None)
        elif word.sign == "+":
            self.layers.append(group, names)
        else:
            self.layers.choose(group, list(dict.fromkeys(names)))

    def _names(self, group: str, word: Word) -> list[str] | None:
        """The parts that a word names; None where it cannot be used."""
        several = group != "recipe" and holds_several(group)
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
        elif value is None and not self._may_be_empty(group):
            self.problems.append(f"{group}=null: every run has a {group}; replace it with {group}=NAME")
        else:
            names = value if isinstance(value, list) else [value if isinstance(value, str) else word.text.strip()]
            again = next((name for name in names if names.count(name) > 1), None)
            if again is None:
                return [] if value is None else names
            self.problems.append(f"{word.shown} names {again} twice; write it once")
        return None


def _root(root: str) -> tuple[dict[str, Any], dict[str, Choice]]:
    """The keys of a root file, and the choice of every group it has: those it lists, else all."""
    keys = read_yaml((catalogue.CONFIGS / f"{root}.yaml").read_text(encoding="utf-8"))
    listed = keys.pop("defaults", None)
    choices = {name: group_of(name).default for name in groups()}
    return keys, choices if listed is None else {name: choice for entry in listed for name, choice in entry.items()}
