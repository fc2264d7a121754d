"""Whether a batch can be trained on: its place in the order, and its size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kernels.batch import Batch
from lightning_modules.parts import Parts


def check_position(batch: Batch, epoch: int, number: int) -> None:
    """Refuse a batch of another place than the one training is at: the run would not be the one asked for.

    Raises:
        RuntimeError: the batch says that it is another one.
    """
    if batch.position is not None and batch.position != (epoch, number):
        given_epoch, given = batch.position
        raise RuntimeError(
            f"the loader gave batch {given} of epoch {given_epoch} where batch {number} of epoch {epoch} is due "
            "(counted from 0); nothing was trained on it. Something else took batches out of the training loader, "
            "or set its position: let it iterate train_eval_dataloader() instead, and go on from the last "
            "checkpoint with resume=RUN"
        )


def check_pieces(parts: Parts, micro_batches: int) -> None:
    """Refuse to cut the batch of a loss, or of a regularizer, that is defined on the whole.

    Raises:
        ValueError: with the key to set.
    """
    terms: list[Any] = [parts.loss, *parts.regularizers.values()]
    whole = [type(part).__name__ for part in terms if not part.per_sample]
    if micro_batches > 1 and whole:
        raise ValueError(
            f"{', '.join(whole)} is defined on the whole batch, and micro_batches={micro_batches} would make "
            "it another loss; set task.micro_batches=1"
        )


def check_size(samples: int, micro_batches: int, batch_norms: Sequence[nn.Module]) -> None:
    """Refuse a batch, a process's share of one, that cannot be cut or that batch norm cannot learn from.

    Raises:
        ValueError: with the keys to set.
    """
    if micro_batches > samples:
        raise ValueError(
            f"task.micro_batches={micro_batches} cuts a batch of {samples} image(s) into more pieces than it "
            "has; set fewer task.micro_batches, a larger data.batch_size, or data.drop_last=true for a last batch"
        )
    if samples // micro_batches <= 1 and any(norm.training for norm in batch_norms):
        raise ValueError(
            f"a batch of {samples} image(s) in {micro_batches} micro-batch(es) leaves batch norm a single "
            "sample, whose variance is undefined; set data.drop_last=true, a larger data.batch_size or fewer "
            "task.micro_batches, or take a backbone without batch norm"
        )


def batch_norms_of(*owners: nn.Module) -> list[nn.Module]:
    """Every module that normalizes by the statistics of its batch."""
    return [
        module
        for owner in owners
        for module in owner.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(module, "uses_batch_statistics", False)
    ]
