"""What a part has to be: the class that each config group stands for, checked before the part is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from recipes.configuration.catalogue import group_of

Kinds = tuple[type, ...]


def kinds_of(group: str) -> Kinds:
    """The class of a config group, as a tuple of one.

    Raises:
        ValueError: its declaration names none.
    """
    module, _, name = group_of(group).kind.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"configs/group/{group}.yaml: there is no {module}.{name} ({error})") from error
    if not isinstance(kind, type):
        raise ValueError(f"configs/group/{group}.yaml: {module}.{name} is no class")
    return (kind,)


def nested_kinds(owner: Callable[..., Any], key: str) -> Kinds:
    """Classes that the annotation of one of ``owner``'s keys names; the key may be that of a base class.

    Raises:
        TypeError: an annotation that cannot be resolved, or that names no class.
    """
    functions: list[Any] = [owner]
    if isinstance(owner, type):
        functions = [vars(base)["__init__"] for base in owner.__mro__ if "__init__" in vars(base)]
    for function in functions:
        if inspect.isfunction(function) and (found := tuple(_classes(_hint(function, key)))):
            return found
    raise TypeError(f"the annotation of {key} names no class, so that no part can stand there")


def check_callable(target: Any, kinds: Kinds, name: str) -> None:
    """Refuse to call what makes something else: a class must derive from the kind, a function must say it returns it.

    Raises:
        TypeError: with the class that is wanted.
    """
    made = _hint(target, "return") if inspect.isfunction(target) else target
    if not (isinstance(made, type) and issubclass(made, kinds)):
        raise TypeError(f"{name} makes no {names_of(kinds)}: a class derives from it, a function has it as return type")


def names_of(kinds: Kinds) -> str:
    """Dotted paths, for messages."""
    return " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)


def _hint(function: Any, key: str) -> Any:
    """One annotation of a function, resolved in its module; those of its other arguments may name what they like."""
    if key not in getattr(function, "__annotations__", {}):
        return None
    alone = SimpleNamespace(__annotations__={key: function.__annotations__[key]})
    try:
        return get_type_hints(alone, globalns=inspect.unwrap(function).__globals__)[key]
    except Exception as error:  # an annotation is an expression: anything can go wrong in it
        raise TypeError(
            f"the annotation of {key} in {function.__qualname__} cannot be resolved ({error}); import what it names at "
            "the top of the module"
        ) from error


def _classes(hint: Any) -> list[type]:
    """The classes in an annotation: itself, or those of a union, list or dict of them."""
    if isinstance(hint, type) and hint is not type(None):
        return [hint]
    return [found for item in get_args(hint) for found in _classes(item)]
