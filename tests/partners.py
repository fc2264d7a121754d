"""What the headers of the parts' YAMLs say, as words and as configurations.

``# partners:`` are the words of the command line that put beside a part what it needs; ``# quick:`` are those that let
it act in a run of a few updates on small images. Both are for users as much as for the tests.
"""

import copy
from functools import cache

import yaml

from recipes.configuration.catalogue import CONFIGS, header, holds_several, is_group

PARTNERS, QUICK = "partners", "quick"


def said(field, group, name):
    """The words of one header line; none for a part without a YAML of its own (a timm name)."""
    known = (CONFIGS / group / f"{name}.yaml").is_file()
    return header(name, group).get(field, "").split() if known else []


def command(chosen, base=()):
    """The words that put parts into a base, with their partners and all that makes them quick.

    Args:
        chosen: (group, name) of each part; several of one group where the group is a list.
        base: words that come first; any of a group that is chosen, or that a partner is of, gives way.
    """
    groups, keys, appended = {}, [], {}
    asked = [word for part in chosen for word in said(PARTNERS, *part)]
    taken = {group for group, _ in chosen}
    for word in [*base, *(word for word in asked if word.partition("=")[0].partition(".")[0] not in taken)]:
        key, _, value = word.partition("=")
        if key.startswith("+"):
            appended.setdefault(key[1:], []).append(value)
        elif "." in key:
            keys.append(word)
        else:
            groups[key] = value
    for group, name in chosen:
        others = [other for kind, other in chosen if kind == group]
        groups[group] = f"[{','.join(others)}]" if holds_several(group) else name
    for group, added in appended.items():
        there = [name for name in groups.get(group, "").strip("[]").split(",") if name]
        groups[group] = f"[{','.join(dict.fromkeys([*there, *added]))}]"
    standing = [(group, name) for group, value in groups.items() for name in value.strip("[]").split(",") if name]
    quick = [word for part in standing for word in said(QUICK, *part)]
    return [*(f"{group}={value}" for group, value in groups.items()), *quick, *keys]


def configure(words):
    """{group: part, or parts by name} of these words alone, without what a recipe and the root YAML bring."""
    nodes = {}
    for word in words:
        key, _, text = word.partition("=")
        value = yaml.safe_load(text)
        group, *path = key.split(".")
        if not path:
            nodes[group] = _of_group(group, value)
            continue
        place = nodes[group]
        for name in path[:-1]:
            place[name] = place.get(name) or {}
            place = place[name]
        place[path[-1]] = value
    return nodes


def _of_group(group, value):
    if not is_group(group):  # such as teacher=REFERENCE
        return value
    if isinstance(value, list):
        return {name: node(group, name) for name in value}
    return None if value is None else node(group, value)


def node(group, name):
    """A part as its YAML says it, to be changed at will."""
    return copy.deepcopy(_read(group, name))


@cache
def _read(group, name):
    content = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return content if "_target_" in content else content[name]
