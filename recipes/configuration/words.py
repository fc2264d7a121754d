"""The words of the command line, for all commands: what a word is, and how its value comes into a configuration.

``key=TEXT`` sets a key, ``+group=NAME`` appends, ``~key`` removes. A word ends where the shell ends it: everything
behind the first ``=`` is the text, never an empty one, and ``values.read_value`` reads it by the type of the key, which
is that of the part that is in force in the end. A key is said once.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.configuration.catalogue import holds_several
from recipes.configuration.layers import merged
from recipes.configuration.plain import MAX_DEPTH
from recipes.configuration.problems import ConfigError
from recipes.configuration.signature import TARGET, Key, UnknownTarget, is_part, root_signature, signature
from recipes.configuration.values import ANY, SeveralValues, item_kind, kinds_of, read_value

SPELLINGS = (
    "write key=value, group=NAME, group=[A,B] where a group holds several parts, +regularizer=[A,B] to append to the "
    "recipe's, ~group to remove"
)
_FORM = re.compile(r"(\+\+|\+|~)?([^\W\d][\w-]*(?:[./][\w-]+)*)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Word:
    """One word.

    Attributes:
        typed: as it was typed.
        sign: ``+``, ``++``, ``~`` or nothing.
        path: dotted path of the key, or the name of a group.
        text: what stands behind the ``=``.
    """

    typed: str
    sign: str
    path: str
    text: str

    @property
    def shown(self) -> str:
        """The word in messages."""
        return repr(self.typed if len(self.typed) <= 200 else f"{self.typed[:199]}…")

    def lies_below(self, path: str) -> bool:
        """Whether the key is that of ``path``, or inside it."""
        return self.path == path or self.path.startswith(f"{path}.")


def parse(typed: str) -> Word:
    """Split one word.

    Raises:
        ValueError: it has not the form of a word, or no value.
    """
    found = _FORM.fullmatch(typed)
    if not found or (found[3] is None and found[1] != "~"):
        raise ValueError(f"cannot read {typed[:200]!r}: {SPELLINGS}")
    if found[3] == "" and found[1] != "~":  # most often a variable of the shell that is not set
        raise ValueError(f"{typed[:200]!r} says no value: write {found[2]}=VALUE, or leave the word out")
    if found[2].count(".") >= MAX_DEPTH:
        raise ValueError(f"{typed[:200]!r}: a key has at most {MAX_DEPTH} names")
    return Word(typed, found[1] or "", found[2], found[3] or "")


def split_words(words: Iterable[str]) -> tuple[list[Word], list[str]]:
    """The words that can be used, and problems: words of no form, and keys that are said twice."""
    first: dict[str, Word] = {}
    kept, problems = list[Word](), list[str]()
    for typed in words:
        try:
            word = parse(typed)
        except ValueError as error:
            problems.append(str(error))
            continue
        appends = word.sign == "+" and holds_several(word.path)
        if not appends and word.path in first:
            problems.append(_said_twice(first[word.path], word))
            continue
        if not appends:
            first[word.path] = word
        kept.append(word)
    return kept, problems


def take(words: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The text of the word for ``key`` (None where there is none), and the other words.

    Raises:
        ConfigError: the key is said twice.
    """
    found = [word for word in words if (match := _FORM.fullmatch(word)) and match[2] == key]
    kept, problems = split_words(found)
    if problems:
        raise ConfigError(problems)
    return (kept[0].text if kept else None), [word for word in words if word not in found]


def set_words(config: dict[str, Any], words: Sequence[Word], target: str) -> dict[str, str]:
    """Set keys of a configuration; a dict is merged into one that is there.

    Args:
        config: plain dict of a root, changed in place.
        words: in any order: what names a target is set before the keys whose types it decides.
        target: whose signature the root is.

    Returns:
        {path: what is wrong with the word for it}.
    """
    problems = dict[str, str]()
    for word in sorted(words, key=lambda word: (word.path.count("."), not word.path.endswith(f".{TARGET}"))):
        if word.path in problems:
            continue
        annotation = annotation_at(config, word.path, target)
        try:
            value = read_value(word.text, annotation)
            _set(config, word, value)
        except SeveralValues:
            problems[word.path] = _several(word, annotation)
        except ValueError as error:
            problems[word.path] = f"cannot read {word.shown}: {error}"
        else:
            again = [other for other in words if other is not word and _covers(word.path, value, other)]
            problems |= {other.path: _said_twice(word, other) for other in again}
    return problems


def annotation_at(config: dict[str, Any], path: str, target: str) -> ast.expr:
    """The annotation of a key, in the signatures of the parts that the configuration names on the way to it."""
    annotation, node = ANY, config
    keys: dict[str, Key] | None = root_signature(target)
    for name in path.split("."):
        if name == TARGET:
            return ast.Name("str")
        annotation = item_kind(annotation, "dict") if keys is None else keys[name].annotation if name in keys else ANY
        node = node.get(name) if isinstance(node, dict) else None  # type: ignore[assignment]
        keys = _keys(node[TARGET]) if is_part(node) else None
    return annotation


def _keys(target: str) -> dict[str, Key]:
    try:
        return signature(target)
    except UnknownTarget:  # which is a problem of its own
        return {}


def _set(config: dict[str, Any], word: Word, value: Any) -> None:
    node, names = config, word.path.split(".")
    for depth, name in enumerate(names[:-1], start=1):
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ValueError(f"{'.'.join(names[:depth])} is {node!r:.80}, which has no keys; see --config")
    node[names[-1]] = merged(node.get(names[-1]), value)


def _covers(path: str, value: Any, other: Word) -> bool:
    """Whether the value of one word says what another word says."""
    if not other.lies_below(path):
        return False
    for name in other.path.split(".")[path.count(".") + 1 :]:
        if not isinstance(value, dict):
            return True
        if name not in value:
            return False
        value = value[name]
    return True


def _said_twice(first: Word, second: Word) -> str:
    return f"{first.shown} and {second.shown} both say what {second.path} is; write one of them"


def _several(word: Word, annotation: ast.expr) -> str:
    kinds = [ast.unparse(kind) for kind in kinds_of(annotation)]
    ways = [f"for a list write {word.path}=[A,B]"] if any(kind.startswith("list") for kind in kinds) else []
    if "Any" in kinds:
        escaped = re.sub(r"([\\'])", r"\\\1", word.text)
        quoted = f"{word.path}='{escaped}'"
        shell = shlex.quote(quoted) if re.search(r'["$`\\!]', quoted) else f'"{quoted}"'
        ways.append(f"for one text quote it, in a shell as {shell}")
    return f"{word.shown} names several values: {'; '.join([*ways, 'for one run each add -m'])}"
