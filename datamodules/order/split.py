"""Seeded choices: which samples or classes are held out for validation, which samples are kept by a limit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.counter_rng import bits, permutation


def allocate(counts: Tensor, total: int, keep: int = 0) -> Tensor:
    """Share ``total`` among classes in proportion to ``counts``, by largest remainders.

    Args:
        counts: ``[C]`` samples of each class.
        total: to share; at most what the classes may give.
        keep: samples that each class has left; what a class cannot give comes from those that have room.

    Example:
        >>> allocate(torch.tensor([6, 3, 1]), 5).tolist()
        [3, 2, 0]
        >>> allocate(torch.tensor([6, 1, 1]), 4, keep=1).tolist()
        [4, 0, 0]
    """
    most = (counts - keep).clamp(min=0)
    exact = counts.to(torch.float64) * total / max(int(counts.sum()), 1)
    shares = torch.minimum(exact.floor().to(torch.int64), most)
    left = min(total, int(most.sum())) - int(shares.sum())
    while left:  # once, but where some classes have no room
        room = shares < most
        remainder = torch.where(room, exact - shares, -torch.inf)
        first = remainder.argsort(descending=True, stable=True)[: min(left, int(room.sum()))]
        shares[first] += 1
        left -= len(first)
    return shares


def choose(labels: Tensor, index: Tensor, total: int, seed: int, stream: str, keep: int = 0) -> Tensor:
    """A boolean mask over ``index``: ``total`` of them, classes in proportion, drawn by ``(seed, stream)``.

    Args:
        labels: ``[N]`` class of every sample of the full set.
        index: positions to choose from.
        total: how many to choose, 0 .. len(index).
        seed: of the choice.
        stream: name of the choice; different names choose independently.
        keep: samples of each class that are not chosen.
    """
    group, rank = drawn_rank(labels, index, seed, stream)
    return rank < allocate(torch.bincount(group), total, keep)[group]


def drawn_rank(labels: Tensor, index: Tensor, seed: int, stream: str) -> tuple[Tensor, Tensor]:
    """Of each position in ``index``: its class, and the place it has among those of its class in an order drawn by
    ``(seed, stream)``.

    Args: those of ``choose``.
    """
    group = labels[index]
    order = bits(seed, 0, index, 0, [stream])[0].argsort()
    order = order[group[order].argsort(stable=True)]  # class by class, at random inside each
    counts = torch.bincount(group)
    start = counts.cumsum(0) - counts
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(index)) - start[group[order]])
    return group, rank


def hold_out(
    labels: Tensor,
    fraction: float,
    seed: int,
    classes: Sequence[str] | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions for training and for validation, each sorted; together the whole set.

    Each class keeps a sample to train on: what a small class cannot give comes from the others.

    Args:
        labels: ``[N]`` class of every sample.
        fraction: of the samples, rounded to a whole number of them.
        seed: of the choice.
        classes: their names, for the message.
        index: positions to divide, sorted; None for all of them.

    Raises:
        ValueError: for a fraction outside [0, 1), or one that is more than all but one sample of each class.
    """
    _check_fraction(fraction)
    index = torch.arange(len(labels)) if index is None else index
    total, counts = round(fraction * len(index)), torch.bincount(labels[index])
    most = int((counts - 1).clamp(min=0).sum())
    if total > most:
        label = int(torch.where(counts > 0, counts, len(labels) + 1).argmin())
        name = f"class {label}" if classes is None else f"class {classes[label]!r}"
        raise ValueError(
            f"data.val_fraction={fraction} holds out {total} of {len(index)} samples, and {most} are all but one of "
            f"each class; {name} has {counts[label]}, the fewest. Use a smaller fraction, or more images"
        )
    held = choose(labels, index, total, seed, "split", keep=1)
    return index[~held], index[held]


def _check_fraction(fraction: float) -> None:
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"data.val_fraction must be in [0, 1), got {fraction}")


@dataclass(frozen=True)
class ClassSplit:
    """Classes held out with all their samples; training and validation each number their own classes from 0.

    Attributes:
        kept, held: class numbers of the whole set, sorted: those of training and those of validation.
        train_labels, val_labels: ``[N]`` positions in ``kept`` and in ``held``; -1 for samples of the other.
    """

    kept: Tensor
    held: Tensor
    train_labels: Tensor
    val_labels: Tensor

    @property
    def train_index(self) -> Tensor:
        return (self.train_labels >= 0).nonzero()[:, 0]

    @property
    def val_index(self) -> Tensor:
        return (self.val_labels >= 0).nonzero()[:, 0]

    def names(self, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the classes of training and of validation."""
        kept, held = (tuple(classes[label] for label in part.tolist()) for part in (self.kept, self.held))
        return kept, held


def hold_out_classes(labels: Tensor, num_classes: int, fraction: float, seed: int) -> ClassSplit:
    """Hold out ``fraction`` of the classes, rounded, at least two unless it is 0, drawn by ``seed``.

    Among the images of a single class every retrieval is right, so one class would say nothing.

    Args:
        labels: ``[N]`` in ``0 .. num_classes - 1``.
        num_classes: of the whole set.
        fraction: of the classes, whatever their sizes.
        seed: of the choice.

    Raises:
        ValueError: for a fraction outside [0, 1), or when no class would be left to train on.
    """
    _check_fraction(fraction)
    count = max(round(fraction * num_classes), 2) if fraction > 0 else 0
    if count >= num_classes:
        raise ValueError(
            f"data.val_fraction={fraction} holds out {count} of {num_classes} training classes, which leaves none to "
            "train on; use a smaller one (0 holds out none), or more classes"
        )
    order = permutation(seed, 0, num_classes, "split.classes")
    held, kept = order[:count].sort().values, order[count:].sort().values
    place = torch.full((2, num_classes), -1, dtype=torch.int64)
    place[0, kept], place[1, held] = torch.arange(num_classes - count), torch.arange(count)
    return ClassSplit(kept, held, place[0, labels], place[1, labels])


def limit(labels: Tensor, index: Tensor, count: int | None, seed: int, key: str) -> Tensor:
    """``count`` of the positions in ``index``, stratified, in the order they had; all of them for None.

    Raises:
        ValueError: for a count below 1 or above what is there; ``key`` names the setting.
    """
    if count is None:
        return index
    if not 1 <= count <= len(index):
        raise ValueError(f"data.{key}={count}, but it must be between 1 and the {len(index)} samples there are")
    return index[choose(labels, index, count, seed, key)]


def index_digest(index: Tensor) -> str:
    """sha256 of the positions, as little-endian int64."""
    return hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest()
