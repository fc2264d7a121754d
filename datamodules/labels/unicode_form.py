"""Names that look alike: Unicode writes an accented letter as one character or as a letter and its accent.

macOS and Linux, or two editors, may write the same name in either form (NFC and NFD), and a comparison of characters
tells them apart. Here names that differ in nothing else are the same name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def in_composed_form(name: str) -> str:
    """The name in the form NFC.

    Example:
        >>> in_composed_form("cafe\\u0301") == "caf\\u00e9"
        True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def differing_in_form(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two of different names that are one name in two forms; None where there are none."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(in_composed_form(name), name)) != name:
            return other, name
    return None


def same_names(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists hold the same names in the same order, whatever their forms."""
    return [*map(in_composed_form, some)] == [*map(in_composed_form, others)]
