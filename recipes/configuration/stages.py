"""A recipe of stages: configurations that are trained one after another, each from the weights of one before.

    stages:
      probe: [backbone.freeze=true, trainer.max_epochs=5]
      finetune: [init=probe, optimizer=adamw, trainer.max_epochs=20]

The words of a stage mean what they mean on the command line behind this recipe, so a part that a stage swaps starts
from its own defaults. Each stage becomes an ordinary configuration. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.configuration.catalogue import is_backbone
from recipes.configuration.compose import compose_config
from recipes.configuration.overrides import Overrides
from recipes.configuration.problems import ConfigError
from recipes.configuration.stage_words import (
    KEY,
    NAME,
    WHOLE,
    form_problems,
    is_staged,
    name_problems,
    prefix_problems,
    stages_of,
    words_of,
)
from recipes.configuration.validate import part_name_problems, problems_of
from recipes.configuration.words import split_words, take

Config = dict[str, Any]
REFERENCES = ("init", "teacher", "peer")  # keys that name a network
ROOT_TARGET, STAGES_TARGET = "recipes.building.assemble.assemble", "recipes.building.staged.assemble_stages"


def compose_run(words: Sequence[str]) -> Config:
    """What a command line configures: one run, or the stages of a recipe that has some.

    Returns:
        An ordinary configuration; or ``recipe``, ``seed``, ``name``, ``output``, ``max_time`` and ``stages``, the
        ordinary configuration of each stage by its name.

    Raises:
        ConfigError: every problem of every stage.
    """
    named = take(words, "recipe")[0]
    try:
        chosen = Overrides([] if named is None else [f"recipe={named}"])
    except ConfigError:
        return compose_config(words)  # which says why, and what else is wrong
    recipe, stages = named or str(chosen.recipe), stages_of(chosen)
    typed, problems = split_words(words)
    if not stages:
        if staged := [f"{word.shown}: recipe {recipe} has no stages" for word in typed if is_staged(word)]:
            raise ConfigError(staged)
        return compose_config(words)
    problems += form_problems(stages, recipe)
    problems += prefix_problems(typed, list(stages))
    if problems:
        raise ConfigError(problems)
    configs, found = dict[str, Config](), dict[str, list[str]]()
    for name, given in stages.items():
        try:
            configs[name] = compose_config(words_of(name, recipe, given, typed, list(configs)))
        except ConfigError as error:
            found[name] = error.problems
    if problems := merged(found, len(stages)) or _reference_problems(configs):
        raise ConfigError(problems)
    _begin_with_earlier_ones(configs)
    first = next(iter(configs.values()))
    return {"recipe": chosen.recipe, "seed": first["seed"], **{key: first[key] for key in WHOLE}, KEY: configs}


def plain_configs(config: Config) -> dict[str, Config]:
    """The ordinary configurations in what ``compose_run`` gives, by stage; that of a run without stages has no name."""
    return dict(config.get(KEY, {"": config}))


def config_problems(config: Config) -> list[str]:
    """What is wrong with a stored configuration, of a run or of stages."""
    if KEY not in config:
        return part_name_problems(config) + problems_of(config, ROOT_TARGET)
    stages = config[KEY]
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()) or not stages:
        return [f"{KEY} must be the configuration of each stage by its name, got {stages!r:.80}"]
    problems = name_problems(list(stages))
    problems += problems_of({key: value for key, value in config.items() if key != KEY}, STAGES_TARGET)
    found = {name: part_name_problems(stage) + problems_of(stage, ROOT_TARGET) for name, stage in stages.items()}
    return list(dict.fromkeys(problems + merged(found, len(stages))))


def merged(found: dict[str, list[str]], count: int) -> list[str]:
    """The problems of all stages: what is wrong with every one of them is said once."""
    lines = dict.fromkeys(line for problems in found.values() for line in problems)
    having = {line: [name for name, problems in found.items() if line in problems] for line in lines}
    return [
        text
        for line, names in having.items()
        for text in ([line] if len(names) == count else [f"stage {name}: {line}" for name in names])
    ]


def _reference_problems(configs: dict[str, Config]) -> list[str]:
    """Stages that begin with, or look at, themselves, a later one, or nothing that there is."""
    problems, names = [], list(configs)
    for number, (name, config) in enumerate(configs.items()):
        before = names[:number]
        known = f"it may name {', '.join(before)}" if before else "it is the first and names none"
        for key, reference in [(kind, one) for kind in REFERENCES for one in listed(config.get(kind))]:
            said = f"stage {name}: {key}={reference}"
            if reference in names[number:]:
                which = "the stage itself" if reference == name else "a later stage"
                problems.append(f"{said} is {which}; {known}")
            elif reference not in before and isinstance(reference, str) and not _is_elsewhere(reference):
                problems.append(f"{said} is no stage before it, no file or folder and no model of timm; {known}")
    return problems


def listed(references: Any) -> list[Any]:
    """The references of a key that takes one, several or none."""
    return references if isinstance(references, list) else [] if references is None else [references]


def _is_elsewhere(reference: str) -> bool:
    """Whether a reference may be something else: what is no name of a stage, is there, or is a model."""
    return not NAME.fullmatch(reference) or Path(reference).exists() or is_backbone(reference)


def _begin_with_earlier_ones(configs: dict[str, Config]) -> None:
    """A stage that begins with the weights of another one needs no pretrained file."""
    for config in configs.values():
        if config.get("init") in configs and "pretrained" in config["backbone"]:
            config["backbone"]["pretrained"] = False
