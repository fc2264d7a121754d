"""HTML and SVG elements that cannot be mis-escaped: text is escaped unless it already is ``Markup``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import TypeAlias

VOID_TAGS = frozenset({"img", "meta"})
#: No characters of HTML, and those that turn the direction of what follows: a name could hide what it says.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


class Markup(str):
    """Text that already is HTML. Only ``element`` and ``join`` make it, and constants of this package."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | None | Iterable[Child]"


def join(children: Child) -> Markup:
    """The children in order: ``Markup`` as it is, other text and numbers escaped, None left out."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int | float):
        return Markup(_escaped(str(children)))
    return Markup("".join(join(child) for child in children))


def element(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """One element.

    Args:
        tag: its name.
        children: content, escaped as ``join`` does.
        attributes: ``class_`` stands for ``class`` and other underscores for hyphens; None and False are left out,
            True is written without a value.

    Example:
        >>> element("p", "a < b", class_="note")
        '<p class="note">a &lt; b</p>'
    """
    opening = "<" + tag + "".join(_attribute(name, value) for name, value in attributes.items()) + ">"
    if tag in VOID_TAGS:
        return Markup(opening)
    return Markup(f"{opening}{join(children)}</{tag}>")


def _attribute(name: str, value: str | int | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    # One decimal is a tenth of a pixel: more only makes the page larger.
    text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return f' {name}="{_escaped(text)}"'


def _escaped(text: str) -> str:
    return escape(UNPRINTABLE.sub("\ufffd", text))
