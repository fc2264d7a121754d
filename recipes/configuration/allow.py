"""Packages of the user's own whose parts may be built: what ``--allow`` and ``build(..., allow=...)`` name.

The list is never read from a configuration, a checkpoint or the environment: only who starts the program extends it.
It holds for the time of one command, in a context variable, so that every check of a target sees it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

FLAG = "--allow"
_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


def allowed() -> tuple[str, ...]:
    """The packages that hold now."""
    return _ALLOWED.get()


def is_allowed(target: str) -> bool:
    """Whether a dotted path lies in one of them."""
    return any(target.startswith(f"{package}.") for package in _ALLOWED.get())


@contextmanager
def allowing(packages: Sequence[str]) -> Iterator[None]:
    """Allow parts of these packages until the block ends; the folder the program was started in is searched last.

    Raises:
        ConfigError: a name that is no package, or one that cannot hold parts.
    """
    from recipes.configuration.problems import ConfigError

    if isinstance(packages, str):
        raise ConfigError([f"allow={packages!r}: give a list of packages, such as [{packages!r}]"])
    if problems := [problem for package in packages if (problem := _problem(package))]:
        raise ConfigError(problems)
    if packages and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))
    token = _ALLOWED.set(tuple(dict.fromkeys((*_ALLOWED.get(), *packages))))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def take_allow(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Packages named by ``--allow PACKAGE`` or ``--allow=PACKAGE``, and the other words."""
    packages, rest, items = list[str](), list[str](), iter(words)
    for word in items:
        if word == FLAG:
            packages.append(next(items, ""))
        elif word.startswith(f"{FLAG}="):
            packages.append(word.partition("=")[2])
        else:
            rest.append(word)
    return packages, rest


def allow_words() -> list[str]:
    """The packages that hold now, as words of a command line."""
    return [f"{FLAG}={package}" for package in _ALLOWED.get()]


def _problem(package: str) -> str | None:
    names = package.split(".")
    if not all(name.isidentifier() and not name.startswith("_") for name in names):
        return f"{FLAG} {package!r} is no package; write {FLAG} NAME or {FLAG} NAME.NAME, as in an import"
    if names[0] in sys.stdlib_module_names:
        return f"{FLAG} {package}: the standard library holds no parts; name the package that holds yours"
    return None
