"""Composition and running of recipes.

``build("cifar_saf", ["trainer.max_epochs=8"])`` returns what ``python train.py recipe=cifar_saf trainer.max_epochs=8``
runs; ``build(...).run()`` trains, evaluates and reports. Nothing here imports torch before a configuration is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.run import Run


def build(recipe: str | None = None, overrides: Sequence[str] = ()) -> Run:
    """Build a recipe exactly as the command line does.

    Args:
        recipe: a name under configs/recipe; None for the default one.
        overrides: command-line words, e.g. ``["backbone=resnet50", "+regularizer=mesa", "seed=1"]``.

    Returns:
        A ``Run``: ``config``, ``data``, ``task``, ``trainer`` and ``run()``.

    Raises:
        ConfigError: every problem of the configuration at once.
    """
    from recipes.compose import compose_config

    config = compose_config([*([f"recipe={recipe}"] if recipe else []), *overrides])
    from recipes.assemble import assemble

    return assemble(**config)
