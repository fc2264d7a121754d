"""The one place where a DataLoader is made."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.order import ShuffledOrder, StoredOrder
from kernels.batch import Batch

Loader = DataLoader[Batch]
TIMEOUT_S = 600  # a batch that takes longer than this hangs


def make_loader(
    source: Dataset[Batch],
    order: ShuffledOrder | StoredOrder,
    num_workers: int,
    persistent_workers: bool = False,
) -> Loader:
    """Batches of ``source`` in ``order``, the same ones for any number of workers.

    Where there is a CUDA device, those of worker processes come in page-locked memory, from which they are sent
    without waiting.

    Args:
        source: its ``__getitems__`` turns the keys of a batch into the batch.
        order: yields the keys.
        num_workers: loader processes; 0 loads in this one.
        persistent_workers: keep the processes from one epoch to the next (ignored without any).
    """
    # Its own generator: a loader without one draws its workers' base seed from the global state, once for each
    # iterator, and a resumed run would then miss a draw.
    return DataLoader(
        source,
        batch_sampler=cast(Any, order),  # typed for lists of single keys
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
        pin_memory=num_workers > 0 and torch.cuda.is_available(),
        persistent_workers=persistent_workers and num_workers > 0,
        timeout=TIMEOUT_S if num_workers > 0 else 0,
    )


def _as_it_is(batch: Any) -> Any:
    """The sources collate themselves."""
    return batch
