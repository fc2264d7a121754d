"""``resume=RUN``: the configuration a run was started with, and what may differ when it goes on. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.configuration.moved import read_stored
from recipes.configuration.plain import value_problems
from recipes.configuration.problems import ConfigError
from recipes.configuration.stage_words import KEY, prefix_problems, words_for
from recipes.configuration.stages import ROOT_TARGET, STAGES_TARGET, config_problems, merged, plain_configs
from recipes.configuration.words import Word, set_words, split_words, take

#: What may change from one session of a run to the next: it decides nothing about the numbers. How many processes
#: there are is compared with the checkpoint, whatever keys led to it.
FREE = (
    "max_time",
    "save_every",
    "stop_after",
    "callback",
    "teacher",  # where its file is; the weights are compared with the checkpoint
    "teaching.folder",
    "data.root",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.process_timeout_s",
)
Config = dict[str, Any]


def configure(words: Sequence[str]) -> tuple[Config, Path]:
    """The configuration and directory of the run that ``resume=`` names, with the other words applied.

    Raises:
        ConfigError: no run there, a word that cannot be applied, or one that would make it another run.
    """
    place, others = take(words, "resume")
    directory = Path(place or "")
    stored = read_config(directory)
    for config in plain_configs(stored).values():
        config["stop_after"] = None  # it ended the session before
    changed = apply(stored, others)
    problems = [f"resuming {directory}: {line}" for line in differences(stored, changed)]
    if problems := problems or value_problems(changed) or config_problems(changed):
        raise ConfigError(problems)
    return changed, directory


def read_config(directory: Path) -> Config:
    """What a run directory says it was configured with.

    Raises:
        ConfigError: it is no run directory, or its config.yaml cannot be read or is none.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            [f"{directory} is no run directory: it has no config.yaml; give one such as runs/RECIPE/NAME"]
        )
    try:
        config = read_stored(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    if not isinstance(config, dict):
        raise ConfigError([f"{path} is no configuration of a run"])
    if problems := value_problems(config) or config_problems(config):
        raise ConfigError([f"{path}: {line}" for line in problems])
    return config


def apply(config: Config, words: Sequence[str]) -> Config:
    """A copy with ``key=value`` words set; a part that is named, such as ``backbone=NAME``, stays a name."""
    changed = copy.deepcopy(config)
    parsed, problems = split_words(words)
    if problems := problems or (_set_stages if KEY in config else _set_run)(changed, parsed):
        raise ConfigError(problems)
    return changed


def _set_run(config: Config, words: Sequence[Word]) -> list[str]:
    """Set words of an ordinary configuration in place; what is wrong with them."""
    problems = [
        f"{word.shown} cannot be applied to a run that is resumed; write key=value of its config.yaml"
        for word in words
        if word.sign not in ("", "++") or not (word.path in FREE or _holds(config, word.path))
    ]
    return problems or [*set_words(config, words, ROOT_TARGET).values()]


def _set_stages(config: Config, words: Sequence[Word]) -> list[str]:
    """The same with stages: a word is for all of them, or for those that have its key, or for the one it names."""
    if problems := prefix_problems(words, list(config[KEY])):
        return problems
    whole = [word for word in words if word.path in config]
    problems, found = [*set_words(config, whole, STAGES_TARGET).values()], dict[str, list[str]]()
    for name, stage in config[KEY].items():
        common, own = words_for(name, words)
        said = {word.path for word in own}
        common = [word for word in common if word.path not in said]
        fits = [word for word in common if _holds(stage, word.path)]
        nowhere = [word for word in common if not any(_holds(other, word.path) for other in config[KEY].values())]
        found[name] = _set_run(stage, [*fits, *nowhere, *own])
    return list(dict.fromkeys([*problems, *merged(found, len(config[KEY]))]))


def _holds(node: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def differences(old: Config, new: Config) -> list[str]:
    """What of two configurations would make them different runs, with both values."""
    if KEY in old and KEY in new and [*old[KEY]] == [*new[KEY]]:
        return merged({name: differences(stage, new[KEY][name]) for name, stage in old[KEY].items()}, len(old[KEY]))
    before, after = _flat(old), _flat(new)
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    return [
        f"{key} is {before.get(key)!r} in the run and {after.get(key)!r} now"
        for key in keys
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of everything that is set; what is None or empty is as if it were not there."""
    if isinstance(node, dict):
        return {
            key: value
            for name, item in node.items()
            for key, value in _flat(item, f"{path}.{name}" if path else str(name)).items()
        }
    return {} if node is None or node == [] else {path: node}
