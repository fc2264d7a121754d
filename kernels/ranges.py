"""Ranges of numbers, stated where their type is: ``momentum: Annotated[float, "0 <= x < 1"] | None``.

One statement serves three readers: whoever reads the signature, the check of a configuration (from the source text,
without importing anything) and the call itself. This module imports no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
FINITE = "finite"
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_FROM_BELOW = re.compile(rf"({_NUMBER}) (<=|<) x(?: (<=|<) ({_NUMBER}))?")
_FROM_ABOVE = re.compile(rf"x (<=|<|>=|>) ({_NUMBER})")


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of finite numbers.

    Attributes:
        whole: integers only.
        text: as it was written, with ``x`` for the number.
        low, high: its ends.
        low_open, high_open: whether that end is none of its numbers.

    Example:
        >>> Range.parse("float", "0 <= x < 1").holds(1.0)
        False
    """

    whole: bool
    text: str
    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    low_open: bool = False
    high_open: bool = False

    @staticmethod
    @cache
    def parse(kind: str, text: str) -> Range:
        """The range that a text states: ``x >= 1``, ``0 <= x < 1``, or ``finite`` for every finite number.

        Args:
            kind: ``int`` or ``float``.
            text: with one space around each sign.

        Raises:
            ValueError: another form, or a range that holds no number.
        """
        ends: dict[str, Any] = {}
        if found := _FROM_BELOW.fullmatch(text):
            low, left, right, high = found.groups()
            ends = {"low": float(low), "low_open": left == "<"}
            ends |= {} if high is None else {"high": float(high), "high_open": right == "<"}
        elif found := _FROM_ABOVE.fullmatch(text):
            sign, number = found.groups()
            end = "low" if sign[0] == ">" else "high"
            ends = {end: float(number), f"{end}_open": len(sign) == 1}
        elif text != FINITE:
            raise ValueError(f'{text!r} is no range; write "x >= 1", "0 <= x < 1" or "{FINITE}" (any finite number)')
        made = Range(kind == "int", text, **ends)
        if made.low > made.high or (made.low == made.high and (made.low_open or made.high_open)):
            raise ValueError(f"{text!r} is a range without a number in it")
        return made

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of this kind inside the range; NaN is none, and true and false are none."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value if isinstance(value, Integral) else float(value)
        above = number > self.low if self.low_open else number >= self.low
        return bool(above and (number < self.high if self.high_open else number <= self.high))

    def said_of(self, name: str) -> str:
        """The range in words about a key: ``0 <= momentum < 1``, ``lag >= 1 (int)``."""
        words = f"any finite {name}" if self.text == FINITE else re.sub(r"\bx\b", name, self.text)
        return f"{words} (int)" if self.whole else words


def range_checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses keyword arguments outside the ranges that their annotations state.

    Numbers in a list, a tuple or a dict are looked at one by one; what is no number is left to the type checker.

    Raises:
        ValueError: on a call; the message has the key, what came and what is allowed.

    Example:
        >>> @range_checked
        ... def drop(*, prob: Annotated[float, "0 <= x < 1"] = 0.5) -> float:
        ...     return prob
        >>> drop(prob=1.5)
        Traceback (most recent call last):
        ValueError: prob=1.5 is out of range; allowed: 0 <= prob < 1
    """

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, ranges in _stated(function).items():
            if name in kwargs and any(not _held(number, ranges) for number in _numbers(kwargs[name])):
                allowed = " or ".join(stated.said_of(name) for stated in ranges)
                raise ValueError(f"{name}={kwargs[name]!r} is out of range; allowed: {allowed}")
        return function(*args, **kwargs)

    return checked


class RangeChecked:
    """A class whose constructor, and that of every subclass, is ``range_checked``."""

    def __init_subclass__(cls, **keys: Any) -> None:
        super().__init_subclass__(**keys)
        if "__init__" in vars(cls):
            cls.__init__ = range_checked(cls.__init__)  # type: ignore[method-assign]


@cache
def _stated(function: Callable[..., Any]) -> dict[str, tuple[Range, ...]]:
    """The ranges in the annotations of a function, by key; annotations without one need not be resolvable here."""
    found = {}
    for name, annotation in function.__annotations__.items():
        if "Annotated" in str(annotation):
            alone = SimpleNamespace(__annotations__={name: annotation})
            names = function.__globals__  # type: ignore[attr-defined]
            found[name] = tuple(dict.fromkeys(_ranges(get_type_hints(alone, names, include_extras=True)[name])))
    return {name: ranges for name, ranges in found.items() if ranges}


def _ranges(hint: Any) -> Iterator[Range]:
    """Those anywhere in a type."""
    if get_origin(hint) is Annotated:
        kind, text = get_args(hint)[:2]
        if kind in (int, float) and isinstance(text, str):
            yield Range.parse(kind.__name__, text)
    for inner in get_args(hint):
        yield from _ranges(inner)


def _numbers(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, Real)]


def _held(number: Any, ranges: tuple[Range, ...]) -> bool:
    return any(stated.holds(number) for stated in ranges)
