"""The interval of a share that was counted."""

from __future__ import annotations

import math


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): sensible at 0 and 1, where the normal one is empty.

    Example:
        >>> low, high = wilson_interval(0, 10)
        >>> low, round(high, 3)
        (0.0, 0.278)
    """
    z = 1.959964
    centre = (correct + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(correct * (total - correct) / total + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may lead past the ends
