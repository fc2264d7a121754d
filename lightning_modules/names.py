"""Messages about names that do not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(key: str, name: str, choices: Iterable[str]) -> str:
    """What came, the nearest allowed names, and how many there are."""
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    if not choices:
        return f"{key}={name} is not known; there is no {key} to choose from yet"
    listing = f" Allowed: {', '.join(choices)}" if len(choices) <= 30 else f" ({len(choices)} names are allowed)"
    return f"{key}={name} is not known{hint}{listing}"
