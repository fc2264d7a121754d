"""Stratified, seeded choices among samples: which are held out for validation, which are kept by a limit."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from kernels.counter_rng import bits


def allocate(counts: Tensor, total: int) -> Tensor:
    """Share ``total`` among classes in proportion to ``counts``, by largest remainders; never more than a class has.

    Example:
        >>> allocate(torch.tensor([6, 3, 1]), 5).tolist()
        [3, 2, 0]
    """
    exact = counts.to(torch.float64) * total / max(int(counts.sum()), 1)
    shares = exact.floor().to(torch.int64)
    room = shares < counts
    remainder = torch.where(room, exact - shares, -1.0)
    by_remainder = remainder.argsort(descending=True, stable=True)
    shares[by_remainder[: total - int(shares.sum())]] += 1
    return shares


def choose(labels: Tensor, index: Tensor, total: int, seed: int, stream: str) -> Tensor:
    """A boolean mask over ``index``: ``total`` of them, classes in proportion, drawn by ``(seed, stream)``.

    Args:
        labels: ``[N]`` class of every sample of the full set.
        index: positions to choose from.
        total: how many to choose, 0 .. len(index).
        seed: of the choice.
        stream: name of the choice; different names choose independently.
    """
    _, group, counts = labels[index].unique(return_inverse=True, return_counts=True)
    order = bits(seed, 0, index, 0, [stream])[0].argsort()
    order = order[group[order].argsort(stable=True)]  # class by class, at random inside each
    start = counts.cumsum(0) - counts
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(index)) - start[group[order]])
    return rank < allocate(counts, total)[group]


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions for training and for validation, each sorted; together the whole set.

    Raises:
        ValueError: for a fraction outside [0, 1), or when a class would have no sample left to train on.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"data.val_fraction must be in [0, 1), got {fraction}")
    everything = torch.arange(len(labels))
    held = choose(labels, everything, round(fraction * len(labels)), seed, "split")
    lost = sorted(set(labels.tolist()) - set(labels[~held].tolist()))
    if lost:
        raise ValueError(
            f"data.val_fraction={fraction} leaves no training sample of class {lost[0]}; "
            "use a smaller one, or more images of that class"
        )
    return everything[~held], everything[held]


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
