"""The command line's words: checked one by one, all problems collected, and turned into what Hydra understands.

key=value                    one value
group=NAME                   choose a part          group=[A,B]   several, where a group holds several
+regularizer=[mesa,nd]       append to the recipe's
~attack                      remove
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lightning_modules.names import unknown_name
from recipes.allow import is_allowed
from recipes.catalogue import CONFIGS, LIST_GROUPS, is_backbone, options
from recipes.plain import MAX_DEPTH, TOO_DEEP, brackets_open
from recipes.recipe_file import read_recipe
from recipes.signature import TARGET, outside_hint

SPELLINGS = (
    "write key=value, group=NAME, group=[A,B] where a group holds several parts, +regularizer=[A,B] to append to the "
    "recipe's, ~group to remove"
)
#: Where a run executes is no part of its method: what a recipe sets here (its length) stays when it is swapped.
KEEPS_SETTINGS = ("trainer",)
SEATS = ("surgery", "attack", "teacher", "gradient", "reweighting", "mixing")


class Overrides:
    """Parses words into Hydra overrides and problems.

    Attributes:
        problems: messages about words that cannot be used.
        recipe: the chosen recipe, None when its name is wrong.
        words: Hydra overrides that can be composed.
        values: (dotted key, value) of every plain ``key=value``.
        swapped: groups of one part whose option differs from the recipe's.
        removed: dotted keys and parts that ``~`` takes out.
        unread: keys whose word could not be read; that their value is missing is then no problem of its own.
    """

    def __init__(self, words: Sequence[str], root: str = "train") -> None:
        self.root, self.problems = root, list[str]()
        defaults = root_defaults(root)
        self.recipe: str | None = defaults.get("recipe")
        self.values: list[tuple[str, Any]] = []
        self.swapped: dict[str, str] = {}
        self.removed: list[str] = []
        self.unread: list[str] = []
        self._groups: dict[str, Any] = {}
        self._keys: list[str] = []
        self._defaults = defaults
        parsed = [override for word in words if (override := self._parse(word)) is not None]
        for override in sorted(parsed, key=lambda o: o.key_or_group != "recipe"):
            self._read(override)

    @property
    def words(self) -> list[str]:
        """An empty seat that stays empty needs no word, and Hydra could not remove it."""
        groups = [item for item in self._groups.items() if item[1] is not None or self._own(item[0]) is not None]
        return [_spell(name, value) for name, value in groups] + self._keys

    def chosen(self, group: str) -> Any:
        """The choice for a group: the command line's, else the recipe's."""
        return self._groups[group] if group in self._groups else self._own(group)

    def _own(self, group: str) -> Any:
        return _choice(self.recipe, group, self._defaults.get(group))

    def _parse(self, word: str) -> Override | None:
        if brackets_open(word) > MAX_DEPTH:  # the parser of Hydra would run out of stack
            self.problems.append(f"{word[:80]!r}...: {TOO_DEEP}")
            return None
        try:
            override = OverridesParser.create().parse_override(word)
        except ValueError:
            self.unread.append(word.partition("=")[0].lstrip("+"))
            self.problems.append(f"cannot read {word[:60]!r}...: a number of {len(word):,} digits")
            return None
        except HydraException:
            self.unread.append(word.partition("=")[0].lstrip("+"))
            self.problems.append(f"cannot read {word[:200]!r}: {self._quoted(word) or SPELLINGS}")
            return None
        if override.is_sweep_override():
            name = override.key_or_group
            self.unread.append(name)
            parts = f"for several parts write {name}=[A,B]; " if name in LIST_GROUPS else ""
            self.problems.append(f"{word!r} names several values: {parts}for one run each add -m")
            return None
        return override

    def _quoted(self, word: str) -> str | None:
        """Advice for a value with characters that Hydra reads as its own, such as the ``=`` of a path."""
        found = re.fullmatch(r"(\+{0,2}[\w.]+)=(.*)", word, flags=re.DOTALL)
        if not found or found[1].lstrip("+") in (*self._defaults, *SEATS) or found[2][:1] in "[{'\"":
            return None
        escaped = found[2].replace("'", "\\'")
        spelled = f"{found[1]}='{escaped}'"
        try:
            OverridesParser.create().parse_override(spelled)
        except (HydraException, ValueError):
            return None
        shell = shlex.quote(spelled) if re.search(r'["$`\\!]', spelled) else f'"{spelled}"'
        return f"some characters of the value have a meaning here; quote it, in a shell as {shell}"

    def _read(self, override: Override) -> None:
        name = override.key_or_group
        if name == "hydra" or name.startswith("hydra.") or name.startswith("hydra/"):
            self.problems.append(f"{override.input_line!r}: Hydra's own settings are not part of a run; see --help")
        elif name in self._defaults or name in SEATS:
            self._read_group(name, override)
        elif override.is_delete():
            self.removed.append(name)
        else:
            self._set(name, override.value(), str(override.input_line).split("=", 1)[1])

    def _read_group(self, group: str, override: Override) -> None:
        several = group in LIST_GROUPS
        current = self.chosen(group)
        if override.is_delete():
            if not current:
                self.problems.append(f"~{group}: the recipe has no {group} to remove")
            elif group not in (*LIST_GROUPS, *SEATS):
                self.problems.append(f"~{group}: every run has a {group}; replace it with {group}=NAME")
            else:
                self._groups[group] = [] if several else None
                self.swapped.pop(group, None)
            return
        value = override.value()
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            self.problems.append(f"{override.input_line!r}: {group} holds one part; write {group}=NAME")
            return
        if value is None and group not in (*LIST_GROUPS, *SEATS):
            self.problems.append(f"{group}=null: every run has a {group}; replace it with {group}=NAME")
            return
        names = [
            str(getattr(item, "text", item))
            for item in (value if isinstance(value, list) else [value])
            if item is not None
        ]
        if override.is_add() and not several and current:
            self.problems.append(
                f"{override.input_line!r}: {group} holds one part, and the recipe has {current}; replace it with "
                f"{group}={names[0] if names else 'NAME'}"
            )
            return
        known = [name for name in names if self._known(group, name)]
        if len(known) < len(names):
            return
        if several:
            before = current if override.is_add() else []
            own = [name for name in known if is_allowed(name)]
            self._groups[group] = list(dict.fromkeys([*(before or []), *(name for name in known if name not in own)]))
            for name in own:
                self._set(f"{group}.{key_of(name)}.{TARGET}", name, name)
        elif known and is_allowed(known[0]):
            self.swapped[group] = known[0]
        elif group == "backbone" and known and known[0] not in options("backbone"):
            self._groups[group] = self.swapped[group] = "timm"
            self._set("backbone.name", known[0], known[0])
        elif group == "recipe" and known:
            self.recipe = self._groups["recipe"] = known[0]
        elif known or current:
            self._groups[group] = known[0] if known else None
            self.swapped.pop(group, None)
            if known and known[0] != self._own(group) and group not in KEEPS_SETTINGS:
                self.swapped[group] = known[0]

    def _set(self, name: str, value: Any, text: str) -> None:
        self.values.append((name, value))
        self._keys.append(f"++{name}={text}")

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
