"""Batches of P classes with K samples each, for losses that compare samples of a batch.

A function of (seed, epoch), as the shuffled order. The distribution, for C classes, S batches an epoch and
P = batch_size / K:

* Classes: permutations of all C classes, one after another; every P consecutive ones are a batch. Where a batch spans
  two permutations, it takes those of the second that it does not have yet: no class stands twice in a batch. Over an
  epoch the classes appear equally often, to within one: floor or ceil of S * P / C times.
* Samples of a class: the same, with permutations of its samples and K of them for every time the class appears: no
  sample stands twice in a batch, and over an epoch those of one class appear equally often, to within one.
* A class with n < K samples: each of them floor(K / n) times in a batch, the remaining K mod n as above. Repeats have
  different views, hence different augmentations.

Large classes thus give each of their samples less often than small ones: an epoch has the length of the shuffled one,
not its content.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.order.order import TrainingOrder, earlier_visits
from kernels.counter_rng import bits


class ClassBalancedOrder(TrainingOrder):
    """Batches of ``batch_size / samples_per_class`` classes; the samples of a class stand together.

    Every batch is whole. An epoch has ``len(index) / batch_size`` batches, rounded down with ``drop_last``, else up.

    Args:
        index: ``[N]`` positions in the full training set, each once.
        labels: ``[N]`` their classes.
        batch_size: samples of a batch over all ranks; a multiple of ``samples_per_class``.
        samples_per_class: K.
        seed: the run's seed.
        drop_last: round the number of batches down.
        augmentations: epochs after which augmentations come again; None for never.

    Raises:
        ValueError: a batch that cannot be made of K samples a class, or of more classes than there are.
    """

    def __init__(
        self,
        index: Tensor,
        labels: Tensor,
        batch_size: int,
        samples_per_class: int,
        seed: int,
        drop_last: bool = True,
        augmentations: int | None = None,
    ) -> None:
        super().__init__(index, batch_size, seed, drop_last, augmentations)
        self.samples_per_class = samples_per_class
        self.labels, group, counts = labels.unique(return_inverse=True, return_counts=True)
        self._members = index[group.argsort(stable=True)]  # class by class
        self._counts = counts.numpy()
        if batch_size % samples_per_class:
            near = max(round(batch_size / samples_per_class), 1)
            raise ValueError(
                f"data.batch_size={batch_size} is not a multiple of data.samples_per_class={samples_per_class}, the "
                f"samples of each class in a batch; use batch_size={near * samples_per_class}"
            )
        self.classes_per_batch = batch_size // samples_per_class
        if self.classes_per_batch > len(counts):
            raise ValueError(
                f"data.batch_size={batch_size} with data.samples_per_class={samples_per_class} needs "
                f"{self.classes_per_batch} classes, and the training samples have {len(counts)}; use a batch_size of "
                f"at most {len(counts) * samples_per_class}, or more samples_per_class"
            )

    def visits(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of an epoch in their order, and the view of each."""
        classes = self._classes(epoch).reshape(-1)
        times = np.bincount(classes, minlength=len(self._counts))
        blocks = np.concatenate(self._samples(epoch, times))  # class by class, in the order of its appearances
        order = np.empty_like(classes)
        order[classes.argsort(kind="stable")] = np.arange(len(classes))
        ordered = torch.from_numpy(blocks[order].reshape(-1))
        return ordered.numpy(), earlier_visits(ordered).numpy()

    def _classes(self, epoch: int) -> np.ndarray:
        """``[S, P]`` classes of every batch, by their position in ``labels``."""
        everything = torch.arange(len(self._counts))
        rounds = -(-len(self) * self.classes_per_batch // len(everything))
        drawn = [
            bits(self.seed, epoch, everything, number, ["order.class"])[0].argsort().numpy() for number in range(rounds)
        ]
        return consecutive(drawn, self.classes_per_batch, len(self))

    def _samples(self, epoch: int, times: np.ndarray) -> list[np.ndarray]:
        """``[times, K]`` samples of every class, for each time it appears."""
        whole, rest = np.divmod(self.samples_per_class, self._counts)
        needed = -(-times * rest // self._counts)  # permutations of each class
        starts = self._counts.cumsum() - self._counts
        group = np.repeat(np.arange(len(starts)), self._counts)
        members = self._members.numpy()
        rounds: list[list[np.ndarray]] = [[] for _ in starts]
        for number in range(int(needed.max(initial=0))):
            chosen = np.flatnonzero(needed[group] > number)
            drawn = bits(self.seed, epoch, self._members[chosen], number, ["order.sample"])[0].numpy()
            chosen = chosen[np.lexsort((drawn, group[chosen]))]
            bounds = np.flatnonzero(np.diff(group[chosen])) + 1
            for part in np.split(chosen, bounds) if len(chosen) else []:
                rounds[group[part[0]]].append(members[part])
        found = []
        for start, count, copies, size, drawn_rounds, visits in zip(
            starts, self._counts, whole, rest, rounds, times, strict=True
        ):
            copied = np.tile(np.tile(members[start : start + count], copies), (visits, 1))
            found.append(np.concatenate([copied, consecutive(drawn_rounds, size, visits)], axis=1))
        return found


def consecutive(rounds: list[np.ndarray], size: int, count: int) -> np.ndarray:
    """``count`` rows of ``size`` different entries: the rounds one after another, cut into pieces.

    A piece that spans two rounds takes those of the second that it does not have yet, in their order; the others of
    that round follow. So every round is used up before the next begins.

    Args:
        rounds: permutations of the same entries, at least ``size`` of them.
        size: entries of a row.
        count: rows, not more than the rounds are enough for.

    Example:
        >>> consecutive([np.array([0, 1, 2]), np.array([2, 0, 1])], 2, 3).tolist()
        [[0, 1], [2, 0], [2, 1]]
    """
    rows, rest = [np.empty((0, size), dtype=np.int64)], np.empty(0, dtype=np.int64)
    for drawn in rounds:
        if len(rest):
            first = drawn[~np.isin(drawn, rest)][: size - len(rest)]
            drawn = np.concatenate([rest, first, drawn[~np.isin(drawn, first)]])
        whole = len(drawn) // size * size
        rows.append(drawn[:whole].reshape(-1, size))
        rest = drawn[whole:]
    return np.concatenate(rows)[:count] if size else np.empty((count, 0), dtype=np.int64)
