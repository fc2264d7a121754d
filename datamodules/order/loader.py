"""The one place where a DataLoader is made."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.order.order import Keys, StoredOrder, TrainingOrder
from kernels.batch import Batch
from kernels.raise_site import raised_here

TIMEOUT_S = 600  # a batch that takes longer than this hangs
GRACE_S = 2.0  # what a loader process goes on for after SIGTERM: its main process may have to finish and save


class LoaderDied(RuntimeError):
    """A loader process died, hangs, or cannot be started."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a loader process sends in place of a batch."""

    error: Exception


class _Told(Dataset[Batch]):
    """A source in a loader process: an error that explains itself arrives as what it is.

    Torch would send its traceback as text, in the message of another error.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getitems__(self, keys: Keys) -> Batch | _Failed:
        try:
            return cast(Batch, self.source.__getitems__(keys))
        except Exception as error:
            if not raised_here(error):
                raise
            error.add_note(f"In a loader process:\n{traceback.format_exc()}")
            return _Failed(error)


class Loader(DataLoader[Batch]):
    """A DataLoader that knows what was taken out of it; loader processes that die or hang say so in words that help.

    Once the last batch of an epoch was taken out, the training order stands at the next epoch. What was only fetched
    ahead does not count; a loop that ends before, and iterates again, starts over at the position set last.
    """

    def __iter__(self) -> Any:
        order: Any = self.batch_sampler
        batches: Any = self._begun()
        if self.num_workers > 0:
            batches = self._explained(batches)
        return _counted(batches, order, order.epoch, order.start) if isinstance(order, TrainingOrder) else batches

    def _begun(self) -> Iterator[Batch]:
        try:
            return super().__iter__()
        except OSError as error:  # no more processes, files or memory
            if self.num_workers == 0:
                raise
            raise LoaderDied(
                f"the {self.num_workers} loader processes cannot be started ({error.strerror or error}): use fewer "
                "data.num_workers, or raise the system's limits (ulimit -u, ulimit -n)"
            ) from error

    def _explained(self, batches: Any) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches)
                if isinstance(batch, _Failed):
                    raise batch.error
            except StopIteration:
                return
            except Exception as error:
                # Now, and not when the traceback is collected: the queues are then gone before the processes, and
                # each of them is waited for until a timeout of 5 s.
                batches._shutdown_workers()
                self._iterator = None
                reason = _explanation(str(error), self.timeout) if isinstance(error, RuntimeError) else None
                if reason is None:
                    raise
                raise LoaderDied(reason) from error
            yield batch


def _counted(batches: Iterator[Batch], order: TrainingOrder, epoch: int, start: int) -> Iterator[Batch]:
    """Batches from a position on, the last of which moves the order on to the next epoch."""
    last = len(order)
    for done, batch in enumerate(batches, start + 1):
        if done == last:  # before it is handed over: not every consumer asks for what comes after it
            order.set_position(epoch, done)
        yield batch


def _explanation(message: str, timeout_s: float) -> str | None:
    """What torch's message about a loader process means; None for any other message."""
    if "timed out after" in message:
        return (
            f"no loader process delivered a batch within data.worker_timeout_s={timeout_s:g} seconds; it hangs "
            "(storage that does not answer?) or is too slow: raise the limit, use fewer data.num_workers, or "
            "data.num_workers=0 to see where it stands"
        )
    if "exited unexpectedly" in message or "is killed by signal" in message:
        return (
            f"a loader process died ({message.strip().rstrip('.')}); it was killed from outside, most often for lack "
            "of memory: use fewer data.num_workers, a smaller data.batch_size, or smaller images"
        )
    return None


def make_loader(
    source: Dataset[Batch],
    order: TrainingOrder | StoredOrder,
    num_workers: int,
    persistent_workers: bool = False,
    timeout_s: int = TIMEOUT_S,
) -> Loader:
    """Batches of ``source`` in ``order``, the same ones for any number of workers.

    Where there is a CUDA device, those of worker processes come in page-locked memory, from which they are sent
    without waiting.

    Args:
        source: its ``__getitems__`` turns the keys of a batch into the batch.
        order: yields the keys.
        num_workers: loader processes; 0 loads in this one.
        persistent_workers: keep the processes from one epoch to the next (ignored without any).
        timeout_s: seconds to wait for a batch of a loader process.

    Raises:
        LoaderDied: while iterating, for a loader process that died or hangs. What a source raises comes through.
    """
    # Its own generator: a loader without one draws its workers' base seed from the global state, once for each
    # iterator, and a resumed run would then miss a draw.
    return Loader(
        cast(Dataset[Batch], _Told(source)) if num_workers > 0 else source,
        batch_sampler=cast(Any, order),  # typed for lists of single keys
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
        pin_memory=num_workers > 0 and torch.cuda.is_available(),
        persistent_workers=persistent_workers and num_workers > 0,
        timeout=timeout_s if num_workers > 0 else 0,
        worker_init_fn=_outlive_signals if num_workers > 0 else None,
    )


def _outlive_signals(worker: int) -> None:
    """A signal to all processes of a job is answered by the main one; a loader that ended first would interrupt it."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: Any) -> None:
    timer = threading.Timer(GRACE_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _as_it_is(batch: Any) -> Any:
    """The sources collate themselves."""
    return batch
