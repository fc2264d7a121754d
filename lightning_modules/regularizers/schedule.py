"""When a regularizer is on."""

from __future__ import annotations


class EpochWindow:
    """``start < epoch < end``, both strict and 0-based, as in the official SAF code.

    Args:
        name: of the part, for messages.
        start: an int is an epoch; a float in (0, 1) is that share of the run, rounded down.
        end: the same, or None for the end of the run.
    """

    def __init__(self, name: str, start: int | float, end: int | float | None) -> None:
        self.name, self.start, self.end = name, start, end
        self.first, self.last = 0, -1

    def resolve(self, max_epochs: int, earliest: int = 0) -> None:
        """Fix the window of a run of ``max_epochs``; ``earliest`` is the first epoch the part could act in at all.

        Raises:
            ValueError: a window without an epoch in it.
        """
        start = resolve_epoch(self.start, max_epochs)
        end = max_epochs if self.end is None else resolve_epoch(self.end, max_epochs)
        self.first, self.last = max(start + 1, earliest), min(end, max_epochs) - 1
        if self.first > self.last:
            raise ValueError(
                f"{self.name} can never act in {max_epochs} epochs: with start_epoch={self.start} and "
                f"end_epoch={self.end} its first epoch would be {self.first} (0-based) and its last one {self.last}; "
                f"raise trainer.max_epochs above {self.first}, or lower start_epoch"
                + (" and lag" if earliest > start + 1 else "")
                + (f"; start_epoch={self.start} is that share of the run" if isinstance(self.start, float) else "")
            )

    def __contains__(self, epoch: int) -> bool:
        return self.first <= epoch <= self.last


def resolve_epoch(value: int | float, max_epochs: int) -> int:
    """An epoch given as a number, or as a share of the run."""
    return value if isinstance(value, int) else int(value * max_epochs)
