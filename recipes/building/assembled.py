"""A configuration, of a run or of stages -> what runs it. Imports torch only when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.configuration.stage_words import KEY

if TYPE_CHECKING:
    from recipes.building.staged import StagedRun
    from recipes.running.run import Run

Config = dict[str, Any]


def assembled(config: Config, **about: Any) -> Run | StagedRun:
    """What ``compose_run`` or ``resume.configure`` gave, built; ``about`` is the command line, and where it goes on."""
    if KEY in config:
        from recipes.building.staged import assemble_stages

        return assemble_stages(**config, **about)
    from recipes.building.assemble import assemble

    return assemble(**config, **about)
