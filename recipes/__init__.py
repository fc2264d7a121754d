"""Composition and running of recipes.

``build("cifar_saf", ["trainer.max_epochs=8"])`` returns what ``python train.py recipe=cifar_saf trainer.max_epochs=8``
runs; ``build(...).run()`` trains, evaluates and reports. Nothing here imports torch before a configuration is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.building.staged import StagedRun
    from recipes.running.run import Run


def build(recipe: str | None = None, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> Run | StagedRun:
    """Build a recipe exactly as the command line does.

    Args:
        recipe: a name under configs/recipe; None for the default one.
        overrides: command-line words, e.g. ``["backbone=resnet50", "+regularizer=mesa", "seed=1"]``.
        allow: packages of your own whose parts may be built, as ``--allow`` names them.

    Returns:
        A ``Run``: ``config``, ``data``, ``task``, ``trainer`` and ``run()``; of a recipe with stages a ``StagedRun``:
        ``config`` and ``run()``.

    Raises:
        ConfigError: every problem of the configuration at once.
    """
    from recipes.building.assembled import assembled
    from recipes.configuration.allow import allowing
    from recipes.configuration.stages import compose_run

    with allowing(allow):
        return assembled(compose_run([*([f"recipe={recipe}"] if recipe else []), *overrides]))


def resume_run(directory: str | Path, overrides: Sequence[str] = (), allow: Sequence[str] = ()) -> Run | StagedRun:
    """Build the run in a directory again, to go on where it was interrupted, bit for bit.

    Args:
        directory: such as ``runs/grocery_saf/trial``.
        overrides: what may change between sessions: ``data.root=...``, ``data.num_workers=...``, ``max_time=...``.
        allow: packages of your own whose parts may be built, as for ``build``.

    Raises:
        ConfigError: no run there, or an override that would make it another run.
    """
    from recipes.building.assembled import assembled
    from recipes.configuration.allow import allowing
    from recipes.running.resume import configure

    with allowing(allow):
        config, path = configure([f"resume={directory}", *overrides])
        return assembled(config, resume=path)
