"""Where parts lie now that older stored configurations name elsewhere."""

from __future__ import annotations

import re
from typing import Any

from recipes.configuration.plain import read_yaml
from recipes.configuration.signature import TARGET

_SOURCES = "cars|cifar|cub|folder|folder_disjoint|grocery|grocery_store|inshop|labelled_files|omniglot|sop|unlabelled"
#: Pattern and replacement for the dotted path of a part.
MOVED = (
    (rf"datamodules\.({_SOURCES})\.(\w+)", r"datamodules.sources.\1.\2"),
    (r"datamodules\.(augment|albumentations_transforms)\.(\w+)", r"datamodules.augmentation.\1.\2"),
    (r"lightning_modules\.(classification|metric_learning)\.(\w+)", r"lightning_modules.tasks.\1.\2"),
    (r"recipes\.trainer\.create_trainer", "recipes.processes.trainer.create_trainer"),
)


def read_stored(text: Any) -> Any:
    """Plain data from the YAML text of a stored configuration, with the parts where they lie today.

    Raises:
        ValueError: as for ``read_yaml``.
    """
    return renamed(read_yaml(text))


def renamed(node: Any) -> Any:
    """A copy in which every target that has moved has its new path.

    Example:
        >>> renamed({"_target_": "datamodules.cifar.CIFAR10", "root": "data"})
        {'_target_': 'datamodules.sources.cifar.CIFAR10', 'root': 'data'}
    """
    if isinstance(node, list):
        return [renamed(item) for item in node]
    if not isinstance(node, dict):
        return node
    new = {key: renamed(value) for key, value in node.items()}
    if isinstance(node.get(TARGET), str):
        new[TARGET] = _new(node[TARGET])
    return new


def _new(target: str) -> str:
    for pattern, replacement in MOVED:
        if re.fullmatch(pattern, target):
            return re.sub(pattern, replacement, target)
    return target
