"""What can be chosen: recipes, config groups and their options, and timm's model names, found by looking at files."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recipes.configuration.plain import read_yaml
from recipes.configuration.source import ROOT

CONFIGS = ROOT / "configs"
Choice = str | list[str] | None


@dataclass(frozen=True, slots=True)
class Group:
    """A config group, as ``configs/group/NAME.yaml`` declares it; its options are the files in ``configs/NAME/``.

    Attributes:
        kind: dotted path of the class that every part of the group is an instance of.
        default: the choice of a run whose recipe makes none, which also says how many parts the group holds: a name,
            one in every run; None, one or none; a list, several by name.
        place: what the targets of its parts start with (or, without a dot at the end, are); None for the folder in
            lightning_modules/ that bears the name of the group.
        keeps_settings: whether the settings of a part stay where another is chosen, since they are no part of a method.
    """

    kind: str
    default: Choice = None
    place: str | None = None
    keeps_settings: bool = False

    @property
    def several(self) -> bool:
        return isinstance(self.default, list)


def groups() -> list[str]:
    """Every config group."""
    return options("group")


def is_group(name: str) -> bool:
    """Whether a group of this name is declared."""
    return (CONFIGS / "group" / f"{name}.yaml").is_file()


def group_of(name: str) -> Group:
    """The declaration of a group.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    return _declared(CONFIGS / "group" / f"{name}.yaml")


def holds_several(name: str) -> bool:
    """Whether a name is that of a group of several parts by name."""
    return is_group(name) and group_of(name).several


def may_be_empty(name: str) -> bool:
    """Whether a run need not have a part of a group."""
    return not isinstance(group_of(name).default, str)


def read_option(group: str, name: str) -> Any:
    """The content of ``configs/GROUP/NAME.yaml``."""
    return read_yaml((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def _declared(path: Path) -> Group:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
        declared = Group(**content)
    except (OSError, TypeError, ValueError) as error:
        names = ", ".join(field.name for field in fields(Group))
        raise ValueError(f"{path} declares no group: {error}; its keys are {names}, and kind must be given") from error
    if not path.stem.isidentifier() or path.stem in _root_keys():
        raise ValueError(
            f"{path} declares no group: {path.stem!r} is a key of every run, or no name; take letters, digits and _"
        )
    chosen = declared.default if isinstance(declared.default, list) else [declared.default or ""]
    texts = [declared.kind, declared.place or "", *chosen]
    if not all(isinstance(text, str) for text in texts) or "." not in declared.kind:
        raise ValueError(
            f"{path} declares no group: kind={declared.kind!r} must be the dotted path of a class, "
            f"default={declared.default!r} the name of a part, null, or a list of names, and place={declared.place!r} "
            "text or null"
        )
    return declared


def _root_keys() -> set[str]:
    """Words that mean something already: keys of a run, and of the programs that read one."""
    return {"resume", "self_check"}.union(
        *(_keys_of(CONFIGS / f"{root}.yaml") for root in ("train", "evaluate", "query", "export"))
    )


@cache
def _keys_of(path: Path) -> frozenset[str]:
    return frozenset(read_yaml(path.read_text(encoding="utf-8")) or {})


def options(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def header(name: str, group: str = "recipe") -> dict[str, str]:
    """The comment fields at the top of a YAML.

    A recipe has what, paper, data, command, expect and cost; a part may have ``partners`` and ``quick``: words of the
    command line that put beside it what it needs, and that let it act in a run of a few updates.
    """
    fields: dict[str, str] = {}
    current = ""
    for line in (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
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
