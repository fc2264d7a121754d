"""Text and values from others: YAML that cannot do more than hold plain data, and what plain data may contain."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator
from itertools import accumulate
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 40
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
MAX_TEXT = 10_000  # of one value
OWN_INTERPOLATION = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}")
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PlainLoader(_Base):
    """The safe loader of PyYAML that also refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


#: Numbers such as 1e-4, which YAML 1.1 takes for text, as every tool for configurations reads them.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: Any) -> Any:
    """Plain data from YAML text: dicts, lists, text, numbers, booleans and null.

    Raises:
        ValueError: no text, too long, nested too deeply, a tag, an anchor (a few can stand for gigabytes), a key given
            twice, or no YAML.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected YAML text, got a {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters of YAML; at most {MAX_CHARACTERS:,} are read")
    try:
        _check_events(text)
        loader = PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, KeyError, AttributeError, TypeError, RecursionError) as error:
        # A parser looks some brackets ahead, and may give up there on a limit of its own.
        reason = TOO_DEEP if brackets_open(text) > MAX_DEPTH else re.sub(r"\s+", " ", str(error)).strip()
        raise ValueError(reason) from error


def brackets_open(text: str) -> int:
    """The most brackets that are open at once: how deep lists and dicts nest, found without any parser.

    Brackets within quotes are counted as well, so it says too much of a text full of them.

    Example:
        >>> brackets_open("[a, {b: [c]}]")
        3
    """
    return max(accumulate((letter in "[{") - (letter in "]}") for letter in text), default=0)


def _check_events(text: str) -> None:
    """Refuse what would cost more than its length, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("anchors and aliases (&name, *name) are not read; write the values out")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"the tag {tag} is not read; YAML here holds plain values only")
        if len(getattr(event, "value", None) or "") > MAX_TEXT:  # numbers of that length are slow to read, too
            raise ValueError(f"a value has more than {MAX_TEXT:,} characters")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(TOO_DEEP)


def value_problems(value: Any, path: str = "", interpolation: re.Pattern[str] | None = None) -> list[str]:
    """What plain data may not contain, with dotted paths.

    Args:
        value: dicts, lists and what they hold.
        path: of ``value``.
        interpolation: the form of ``${...}`` that may stand in text; None for no form at all.
    """
    return [f"{where}: {problem}" for where, leaf in leaves(value, path) if (problem := _problem(leaf, interpolation))]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every key that is text, and of everything that is neither dict nor list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path or "the configuration", value
        return
    for name, item in items:
        if isinstance(value, dict):
            yield f"a key of {path or 'the root'}", name
        yield from leaves(item, f"{path}.{name}" if path else str(name))


def _problem(value: Any, interpolation: re.Pattern[str] | None) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "the number does not fit into 64 bits"
    if isinstance(value, str):
        return _problem_of_text(value, interpolation)
    return None if isinstance(value, int | float | None) else f"a {type(value).__name__} is no plain value"


def _problem_of_text(text: str, interpolation: re.Pattern[str] | None) -> str | None:
    if len(text) > MAX_TEXT:
        return f"{len(text):,} characters; at most {MAX_TEXT:,} are allowed"
    if any(ord(letter) < 32 and letter not in "\t\n" for letter in text):
        return f"{text[:80]!r} holds a control character"
    if not _is_unicode(text):
        return f"{text[:80]!r} is not valid Unicode"
    rest = interpolation.sub("", text) if interpolation else text
    if "${" not in rest:
        return None
    if interpolation is None:
        return f"{text[:80]!r} is an interpolation, and a stored configuration has none"
    return (
        f"{text[:80]!r}: only ${{KEY}} and ${{GROUP.KEY}} are replaced; resolvers such as oc.env are not part of a "
        "configuration; write the value, on a command line with the shell's own $NAME"
    )


def _is_unicode(text: str) -> bool:
    """Whether text can be written to a file; bytes of a command line that are no UTF-8 come as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
