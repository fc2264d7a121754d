"""The order of samples as a function of (seed, epoch), with a position that can be set exactly.

A sampler of batches hands the data set the keys of one batch after another. A key is ``(epoch, index, view)``: all
that a sample's augmentation depends on, so a worker process needs no state. Where augmentations come again after some
epochs, the epoch of a key is the one whose augmentation comes again; the order always has an epoch of its own.

Handing out keys changes nothing: loaders fetch ahead, often a whole epoch, and may throw away what they fetched. Where
training stands is moved by what came out of a loader (``loader.py``), and every batch says where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from kernels.counter_rng import permutation


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one batch, as columns; numpy, because that is cheap both to send to a worker and to make a tensor of.

    Attributes:
        epoch: 0-based epoch whose augmentation is wanted.
        index: ``[B]`` int64 position of each sample in its full set.
        view: ``[B]`` int64, how often each sample was visited before in the same epoch.
        position: where training stands before this batch: its epoch, and the batches of that epoch before it.
        augmentation: ``[B]`` int64, a number for each (epoch, view); None where epochs never come again.
    """

    epoch: int
    index: np.ndarray
    view: np.ndarray
    position: tuple[int, int] = (0, 0)
    augmentation: np.ndarray | None = None

    def shown(self, augmented: bool) -> Tensor | None:
        """``Batch.augmentation`` of these keys: 0 where nothing is augmented."""
        if not augmented:
            return torch.zeros(len(self.index), dtype=torch.int64)
        return None if self.augmentation is None else torch.from_numpy(self.augmentation)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def share(start: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """The part of ``start .. stop`` that belongs to ``rank``: consecutive, sizes differ by at most one."""
    count = stop - start
    return start + rank * count // world, start + (rank + 1) * count // world


def earlier_visits(index: Tensor) -> Tensor:
    """For each entry, how many equal entries stand before it."""
    order = index.argsort(stable=True)
    ordered = index[order]
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    position = torch.arange(len(index))
    first = torch.where(new, position, 0).cummax(0).values if len(index) else position
    return torch.empty_like(index).scatter_(0, order, position - first)


class TrainingOrder(Sampler[Keys]):
    """Batches of one epoch after another; subclasses say what an epoch visits.

    ``batch_size`` is that of the whole update: under torch.distributed every rank yields its consecutive share of
    each batch, so one process and several see the same updates.
    An iterator goes from the position set last, as it was when the iterator was made, to the end of that epoch, and
    leaves the position as it is; ``len`` is always the number of batches of a whole epoch.

    Args:
        index: ``[N]`` positions in the full training set.
        batch_size: samples of a batch over all ranks.
        seed: the run's seed.
        drop_last: leave out the last batch of an epoch when there are too few samples for a whole one.
        augmentations: epochs after which augmentations come again; None for never.
    """

    def __init__(
        self, index: Tensor, batch_size: int, seed: int, drop_last: bool = True, augmentations: int | None = None
    ) -> None:
        self.index, self.batch_size, self.seed, self.drop_last = index, batch_size, seed, drop_last
        self.augmentations = augmentations
        self.epoch, self.start = 0, 0
        if len(self) == 0:
            raise ValueError(
                f"no batch to train on: {len(index)} training samples, batch_size={batch_size}, "
                f"drop_last={drop_last}; use a smaller batch_size, more samples or drop_last=false"
            )

    def visits(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of an epoch in their order, and the view of each."""
        raise NotImplementedError(f"{type(self).__name__} must define visits(epoch)")

    def samples_of(self, batch: int) -> int:
        """Samples of a batch of any epoch, over all ranks; only the last batch may have fewer than ``batch_size``."""
        return self.batch_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.index), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def set_position(self, epoch: int, batches_done: int = 0) -> None:
        """Continue in ``epoch`` after ``batches_done`` batches; a whole epoch done means the next one begins."""
        if epoch < 0 or batches_done < 0:
            raise ValueError(f"a position needs epoch >= 0 and batches_done >= 0, got {epoch} and {batches_done}")
        further, self.start = divmod(batches_done, len(self))
        self.epoch = epoch + further

    def __iter__(self) -> Iterator[Keys]:
        return self.keys(self.epoch, self.start)

    def keys(self, epoch: int, start: int = 0) -> Iterator[Keys]:
        """The keys of this process for each batch of ``epoch`` from number ``start`` on."""
        rank, world = rank_and_world()
        self.check_shares(world)
        index, view = self.visits(epoch)
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            a, b = share(first, first + self.samples_of(batch), rank, world)
            yield self._keys((epoch, batch), index[a:b], view[a:b])

    def _keys(self, position: tuple[int, int], index: np.ndarray, view: np.ndarray) -> Keys:
        epoch = position[0]
        if self.augmentations is None:
            return Keys(epoch, index, view, position)
        again = epoch % self.augmentations
        return Keys(again, index, view, position, again + self.augmentations * view)

    def check_shares(self, world: int) -> None:
        """Refuse a batch with fewer samples than ranks.

        Raises:
            ValueError: naming its size.
        """
        smallest = self.samples_of(len(self) - 1)
        if smallest < world:
            raise ValueError(
                f"a batch of {smallest} samples cannot be shared by {world} processes; "
                "use drop_last=true or another batch_size"
            )


class ShuffledOrder(TrainingOrder):
    """Every sample once an epoch; each epoch has its own permutation.

    One position may stand in ``index`` several times, which makes several views. The last batch of an epoch holds what
    is left, or is left out (``drop_last``). Arguments: see ``TrainingOrder``.
    """

    def samples_of(self, batch: int) -> int:
        return min(self.batch_size, len(self.index) - batch * self.batch_size)

    def visits(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        ordered = self.index[permutation(self.seed, epoch, len(self.index))]
        return ordered.numpy(), earlier_visits(ordered).numpy()


class StoredOrder(Sampler[Keys]):
    """Each sample once, in the order of ``index``, for evaluation.

    Under torch.distributed each rank yields its share of every batch and nobody repeats a sample; a last batch too
    small to share joins the one before, so that all ranks have equally many.
    """

    def __init__(self, index: Tensor, batch_size: int) -> None:
        self.index, self.batch_size = index.numpy(), batch_size

    def _bounds(self, world: int) -> list[tuple[int, int]]:
        starts = list(range(0, len(self.index), self.batch_size))
        if len(starts) > 1 and len(self.index) - starts[-1] < world:
            starts.pop()
        return list(zip(starts, [*starts[1:], len(self.index)], strict=True))

    def __len__(self) -> int:
        return len(self._bounds(rank_and_world()[1]))

    def __iter__(self) -> Iterator[Keys]:
        rank, world = rank_and_world()
        if len(self.index) < world:
            raise ValueError(f"{len(self.index)} samples cannot be shared by {world} processes; use fewer processes")
        for batch, (start, stop) in enumerate(self._bounds(world)):
            a, b = share(start, stop, rank, world)
            yield Keys(0, self.index[a:b], np.zeros(b - a, dtype=np.int64), (0, batch))
