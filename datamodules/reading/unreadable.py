"""What happens to files that cannot be read: an error, or a substitute that is counted and may not happen often."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from datamodules.reading.file_list import FileList
from kernels.counter_rng import bits

Policy = Literal["raise", "substitute"]
Picture = TypeVar("Picture")
SHOWN = 5
ATTEMPTS = 16


class UnreadableImage(ValueError):
    """An image file that cannot be read; the message names file and index."""


class Tally:
    """Which files of a list could not be read: one byte each, in memory that loader processes share.

    Marking a file twice counts once, so neither the number of workers nor that of epochs changes the count. It is the
    count of this process and its loader processes; other ranks have their own.

    Args:
        files: the list.
        part: its name, for messages.
        max_substituted: share of the files, rounded up, that may be unreadable.
    """

    def __init__(self, files: FileList, part: str, max_substituted: float) -> None:
        self.files, self.part, self.max_substituted = files, part, max_substituted
        self.allowed = math.ceil(max_substituted * len(files))
        self._marks = torch.zeros(len(files), dtype=torch.uint8).share_memory_()

    def positions(self) -> list[int]:
        """Positions of the files that could not be read so far."""
        return [int(position) for position in self._marks.nonzero()[:, 0]]

    def report(self) -> dict[str, Any]:
        """The count and the first paths, as plain data."""
        found = self.positions()
        return {"files": len(found), "of": len(self.files), "first": [self.files.name(i) for i in found[:SHOWN]]}

    def mark(self, position: int, error: UnreadableImage) -> None:
        """Count one file; a warning for the first.

        Raises:
            UnreadableImage: there are more than allowed.
        """
        if not self._marks.any():
            warnings.warn(
                f"{error}. It is passed over, as data.on_unreadable=substitute says, and so are up to {self.allowed} "
                f"of the {len(self.files)} files of {self.part}",
                stacklevel=2,
            )
        self._marks[position] = 1
        found = self.positions()
        if len(found) > self.allowed:
            raise UnreadableImage(
                f"{len(found)} files of {self.part} cannot be read, and data.max_substituted={self.max_substituted:g} "
                f"allows {self.allowed} of {len(self.files)}: {', '.join(self.files.name(i) for i in found[:SHOWN])}"
                f"{' and others' if len(found) > SHOWN else ''}; the last error is: {error}"
            ) from error


def substitute(
    read: Callable[[int], Picture | None], position: int, choices: Tensor, seed: int, epoch: int
) -> tuple[int, Picture]:
    """Another sample in place of an unreadable one: its position, and what ``read`` gives for it.

    The choice is a function of (seed, epoch, position), so it depends neither on workers nor on where a run was
    resumed, and all views of a sample in an epoch get the same substitute.

    Args:
        read: gives None for what is unreadable too.
        position: of the sample that cannot be read.
        choices: ``[N]`` positions of the part, from which one is drawn.
        seed: the run's seed.
        epoch: 0-based epoch.

    Raises:
        UnreadableImage: none of 16 draws can be read.
    """
    streams = [f"file.substitute.{attempt}" for attempt in range(ATTEMPTS)]
    words = bits(seed, epoch, torch.tensor([position]), 0, streams)[:, 0] & (2**63 - 1)
    for other in choices[words % len(choices)].tolist():
        found = read(other)
        if found is not None:
            return other, found
    raise UnreadableImage(f"no substitute for index {position}: {ATTEMPTS} draws from {len(choices)} are unreadable")


def check_policy(on_unreadable: str) -> None:
    """Raise ValueError for one that is not known."""
    if on_unreadable not in ("raise", "substitute"):
        raise ValueError(f"data.on_unreadable is {on_unreadable!r}; choose raise or substitute")
