"""Axes with few, round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps data in ``[low, high]`` to pixels in ``[start, end]``."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_step(span: float, count: int, whole: bool = False) -> float:
    """Smallest step among 1, 2, 2.5, 5 x 10^k that cuts ``span`` into at most ``count`` pieces.

    Example:
        >>> round_step(0.9, 4), round_step(24, 5, whole=True)
        (0.25, 5.0)
    """
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(f * power for f in factors if f * power >= raw * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def value_axis(values: list[float], start: float, end: float, *, zero: bool, top: float | None = None) -> Axis:
    """Axis that ends on ticks around ``values``, from 0 where ``zero``; at most up to ``top``."""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        low, high = (0.0, 2 * high) if high > 0 else (low - 1.0, high + 1.0)
    if top is not None:
        high = min(high, top)
    step = round_step(high - low, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [step * i for i in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def position_axis(positions: list[float], start: float, end: float) -> Axis:
    """Axis that spans exactly the positions (epochs, severities); ticks are whole where the positions are."""
    low, high = min(positions), max(positions)
    if high <= low:
        return Axis(low - 0.5, low + 0.5, start, end, [low])
    step = round_step(high - low, 6, whole=all(x == int(x) for x in positions))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, start, end, [step * i for i in range(first, last + 1)])
