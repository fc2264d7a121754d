"""Messages about names that do not exist, and about values that another library refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def values_for(library: str, where: str) -> Iterator[None]:
    """What another library raises inside is its answer to values of the user.

    Args:
        library: whose answer it is.
        where: the keys that it was given, with their values.

    Raises:
        ValueError: in place of any error but those about memory and files.
    """
    try:
        yield
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        said = f"{type(error).__name__} {str(error).strip()[:400]}".splitlines()[0].strip()
        raise ValueError(f"{where}: {library} refuses this ({said}); correct the value") from error
