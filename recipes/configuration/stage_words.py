"""The words of the stages of a recipe, and those that a command line adds to them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from recipes.configuration.catalogue import group_of, holds_several, is_group
from recipes.configuration.overrides import Overrides
from recipes.configuration.problems import ConfigError
from recipes.configuration.words import Word, parse, split_words

KEY = "stages"
#: Said of the whole run, not of a stage.
WHOLE = ("name", "output", "max_time")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
RESERVED = ("checkpoints",)  # what every run directory may hold


def stages_of(chosen: Overrides) -> dict[str, Any]:
    """The stages of a recipe and of those it builds on: a child replaces the words of a stage, or adds one.

    Raises:
        ConfigError: they are no mapping.
    """
    found = chosen.layers.settings.get(KEY)
    if found is not None and not isinstance(found, dict):
        raise ConfigError([f"recipe {chosen.recipe}: {KEY} must be words by the name of a stage, got {found!r:.80}"])
    return found or {}


def words_of(name: str, recipe: str, given: list[str], typed: list[Word], earlier: list[str]) -> list[str]:
    """The words of one stage: the recipe's, then what was typed for every stage, then what was typed for this one.

    The later ones replace what the earlier ones say of the same key; a part that they swap leaves its keys behind.
    """
    words, _ = split_words(given)
    if not any(word.path == "recipe" for word in words):
        words.insert(0, parse(f"recipe={recipe}"))
    common, own = words_for(name, typed)
    begins = any(word.path == "init" and word.text in earlier for word in words)
    # What the first stage begins with is not what the others do, and which recipe it is has been settled.
    common = [word for word in common if word.path != "recipe" and not (begins and word.path == "init")]
    for layer in (common, own):
        chosen = Overrides([word.typed for word in words])
        words = [old for old in words if not any(_replaces(new, old, chosen) for new in layer)] + layer
    return [word.typed for word in words]


def words_for(stage: str, words: Sequence[Word]) -> tuple[list[Word], list[Word]]:
    """Of the words of a command line, those of every stage, and those of this one without ``stages.NAME.``."""
    prefix = f"{KEY}.{stage}."
    own = [word for word in words if word.path.startswith(prefix)]
    return [word for word in words if not is_staged(word)], [_below(word, prefix) for word in own]


def is_staged(word: Word) -> bool:
    """Whether a word says something of stages."""
    return re.split(r"[./]", word.path)[0] == KEY


def prefix_problems(words: Sequence[Word], names: Sequence[str]) -> list[str]:
    """Words that name no stage, or say of one stage what holds for all."""
    problems = []
    for word in words:
        if not is_staged(word):
            continue
        _, _, path = word.path.partition(".")
        name, _, key = path.partition(".")
        if name not in names or not key:
            problems.append(f"{word.shown}: write {KEY}.NAME.key=value, with a NAME of {', '.join(names)}")
        elif key in WHOLE or key == KEY:
            problems.append(f"{word.shown}: {key} is that of the whole run; write {key}={word.text}")
    return problems


def name_problems(names: Sequence[Any]) -> list[str]:
    """Names of stages become names of folders, also where upper and lower case are the same."""
    problems = [
        f"stage {name!s:.80}: the name of a stage is letters, digits, _ and -, at most 64, starts with a letter, and "
        f"is not {' or '.join(RESERVED)}"
        for name in names
        if not NAME.fullmatch(str(name)) or str(name).lower() in RESERVED
    ]
    seen = dict[str, str]()
    for name in map(str, names):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            problems.append(f"stages {other} and {name} differ in case alone, and folders may not; rename one")
    return problems


def form_problems(stages: dict[str, Any], recipe: str) -> list[str]:
    """What is wrong with the stages of a recipe before they are composed."""
    problems = name_problems(list(stages))
    for name, words in stages.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            problems.append(
                f"stage {name}: write a list of words, such as [init=probe, trainer.max_epochs=5], got {words!r:.80}"
            )
            continue
        parsed, unread = split_words(words)
        problems += [f"stage {name}: {line}" for line in unread]
        for word in parsed:
            if is_staged(word) or (word.path == "recipe" and word.text != recipe and _has_stages(word.text)):
                problems.append(f"stage {name}: {word.shown}: stages hold no stages; write all into the recipe")
            elif word.path in WHOLE:
                problems.append(f"stage {name}: {word.shown}: {word.path} is that of the whole run, typed by its user")
    return [f"recipe {recipe}: {line}" for line in problems]


def _has_stages(recipe: str) -> bool:
    try:
        return bool(stages_of(Overrides([f"recipe={recipe}"])))
    except ConfigError:  # which composing the stage says
        return False


def _below(word: Word, prefix: str) -> Word:
    return parse(word.typed.replace(prefix, "", 1))


def _replaces(new: Word, old: Word, chosen: Overrides) -> bool:
    """Whether what ``old`` says is gone with ``new``: the same key, or a key of a part that another takes the place of.

    Whether a backbone is frozen makes a stage what it is, as its length does: what it says of these stays.
    """
    if not old.lies_below(new.path) or (new.sign == "+" and holds_several(new.path)):
        return False
    if old.path == new.path or not is_group(new.path):
        return True
    stays = new.path == "backbone" or group_of(new.path).keeps_settings
    return not stays and new.text != chosen.layers.choices[new.path]
