"""What can be chosen: recipes, the options of each config group, and timm's model names, found by looking at files."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from recipes.signature import ROOT

CONFIGS = ROOT / "configs"

#: Groups that hold several parts by name; every other group holds one.
LIST_GROUPS = ("surgery", "regularizer", "validation", "evaluator", "callback")
HEADER_FIELDS = ("what", "data", "expect", "cost")


def groups() -> list[str]:
    """Every config group that has at least one YAML."""
    return sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and any(folder.glob("*.yaml")))


def options(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def header(recipe: str) -> dict[str, str]:
    """The comment fields at the top of a recipe: what, paper, data, command, expect, cost."""
    fields: dict[str, str] = {}
    current = ""
    for line in (CONFIGS / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"# (\w+): +(.*)", line):
            current = found[1]
            fields[current] = found[2].strip()
        elif current and line.startswith("#   "):
            fields[current] += " " + line[1:].strip()
    return fields


@cache
def backbone_names() -> frozenset[str]:
    """Every model name timm registers, and ours, read from source without importing either."""
    spec = find_spec("timm")
    folders = [ROOT / "lightning_modules" / "backbones"]
    if spec is not None and spec.submodule_search_locations:
        folders.append(Path(spec.submodule_search_locations[0]) / "models")
    names: set[str] = set()
    for path in (path for folder in folders for path in folder.glob("*.py")):
        names |= set(re.findall(r"@register_model\s+def (\w+)\(", path.read_text(encoding="utf-8")))
    return frozenset(names)


def is_backbone(name: str) -> bool:
    """Whether a name, with or without timm's weight tag or our ``_small`` suffix, is a model."""
    return name.split(".")[0].removesuffix("_small") in backbone_names() or name in backbone_names()
