"""The text of ``key=TEXT`` -> a value, by the type that the key's annotation names.

Where the annotation says ``str`` the text is taken as it is; ``str | None`` adds ``null``. Everything else is read by
its looks: ``true``, ``null``, ``3``, ``1e-4``, ``[A,B]``, ``{KEY:VALUE}``, ``'TEXT'``, and what looks like none of
these is text. Inside brackets an item has the type that the annotation gives it, and may be quoted.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from recipes.configuration.plain import MAX_DEPTH, TOO_DEEP
from recipes.configuration.signature import matches

ANY: ast.expr = ast.Name("Any")
LONGEST_NUMBER = 400  # characters; no number that fits into 64 bits has as many
_CLOSING = {"[": "]", "{": "}"}
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'(?=\s*(?:[\],}:]|$))|"(?:[^"\\]|\\.)*"(?=\s*(?:[\],}:]|$))""", re.DOTALL)
_INT = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(?:e[+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)
_WORDS = {"true": True, "false": False}


class SeveralValues(ValueError):
    """A comma outside of brackets and quotes, in the value of a key that is no text."""


def read_value(text: str, annotation: ast.expr) -> Any:
    """The value that ``text`` stands for.

    Args:
        text: what stands behind the ``=``.
        annotation: of the key, as source.

    Raises:
        SeveralValues: for a key that is no text.
        ValueError: brackets that are not paired, or a number that is too long.
    """
    kinds = kinds_of(annotation)
    others = [kind for kind in kinds if not (isinstance(kind, ast.Name) and kind.id == "str")]
    if not others:
        return text
    if len(others) == len(kinds):
        return _by_looks(text.strip(), kinds)
    try:
        value = _by_looks(text, others)
    except ValueError:
        return text
    fits = not isinstance(value, str) and any(matches(kind, value) for kind in others)
    return value if fits else text


def kinds_of(annotation: ast.expr) -> list[ast.expr]:
    """The members of a union, without what ``Annotated`` adds to a type."""
    match annotation:
        case ast.Constant(value=str() as text):
            return kinds_of(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return [*kinds_of(left), *kinds_of(right)]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *_])):
            return kinds_of(kind)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=kind):
            return [*kinds_of(kind), ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            return [kind for member in members for kind in kinds_of(member)]
    return [annotation]


def item_kind(annotation: ast.expr, container: str) -> ast.expr:
    """The annotation of what a list or dict holds; any where it does not say."""
    for kind in kinds_of(annotation):
        match kind:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[_, item])) if name == container == "dict":
                return item
            case ast.Subscript(value=ast.Name(id=name), slice=item) if name == container == "list":
                return item
    return ANY


def split(text: str, separator: str = ",") -> list[str]:
    """The pieces between separators that stand outside of brackets and quotes.

    A quote is one only at the beginning of a value and when a value ends behind it: ``it's`` holds none.

    Raises:
        ValueError: brackets that are not paired, or more than 40 of them inside each other.
    """
    pieces, open_, start, position, begins = list[str](), list[str](), 0, 0, True
    while position < len(text):
        letter = text[position]
        if begins and (found := _QUOTED.match(text, position)):
            position, begins = found.end(), False
            continue
        if letter == separator and not open_:
            pieces.append(text[start:position])
            start = position + 1
        elif letter in _CLOSING:
            open_.append(_CLOSING[letter])
        elif letter in "]}" and (not open_ or open_.pop() != letter):
            raise ValueError(f"a {letter} closes nothing; brackets come in pairs, and a text that holds one in quotes")
        if len(open_) > MAX_DEPTH:
            raise ValueError(TOO_DEEP)
        begins = letter in "[{,:" or (begins and letter.isspace())
        position += 1
    if open_:
        raise ValueError(f"a {open_[-1]} is missing; brackets come in pairs, and a text that holds one in quotes")
    return [*pieces, text[start:]]


def _by_looks(text: str, kinds: Sequence[ast.expr]) -> Any:
    if len(split(text)) > 1:
        raise SeveralValues(text)
    whole = _union(kinds)
    if text[:1] == "[" and text[-1:] == "]":
        return [_item(piece, item_kind(whole, "list")) for piece in _inside(text)]
    if text[:1] == "{" and text[-1:] == "}":
        return dict(_pair(piece, item_kind(whole, "dict")) for piece in _inside(text))
    if _QUOTED.fullmatch(text):
        return _unquoted(text)
    return text if any(_is_member(text, kind) for kind in kinds) else _scalar(text)


def _scalar(text: str) -> Any:
    """A bool, a number or null where it looks like one, else the text."""
    if text == "null":
        return None
    number = _INT.fullmatch(text) or _FLOAT.fullmatch(text)
    if number and len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text):,} digits; numbers fit into 64 bits")
    if number:
        return int(text) if _INT.fullmatch(text) else float(text)
    return _WORDS.get(text.lower(), text)


def _item(text: str, annotation: ast.expr) -> Any:
    """A value inside brackets, where also what is text may be quoted."""
    text = text.strip()
    return _unquoted(text) if _QUOTED.fullmatch(text) else read_value(text, annotation)


def _pair(text: str, annotation: ast.expr) -> tuple[str, Any]:
    key, *rest = split(text, ":")
    if not rest:
        raise ValueError(f"{text.strip()!r} is no KEY:VALUE; write {{KEY:VALUE,KEY:VALUE}}")
    return str(_item(key, ast.Name("str"))), _item(":".join(rest), annotation)


def _inside(text: str) -> list[str]:
    inner = text[1:-1]
    return split(inner) if inner.strip() else []


def _unquoted(text: str) -> str:
    return re.sub(r"\\([\\'\"])", r"\1", text[1:-1])


def _union(kinds: Sequence[ast.expr]) -> ast.expr:
    whole = kinds[0] if kinds else ANY
    for kind in kinds[1:]:
        whole = ast.BinOp(whole, ast.BitOr(), kind)
    return whole


def _is_member(text: str, kind: ast.expr) -> bool:
    """Whether a ``Literal`` names the text, which may look like a number."""
    match kind:
        case ast.Subscript(value=ast.Name(id="Literal"), slice=members):
            found = ast.literal_eval(members)
            return text in (found if isinstance(found, tuple) else (found,))
    return False
