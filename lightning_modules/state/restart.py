"""Lets Lightning's loops begin in the middle of a run.

Lightning restores its own counters only from its own checkpoints, and their resume is not exact. Here the counters are
a function of the position: so many epochs closed, so many batches of the next one done.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def start_at(trainer: Trainer, epoch: int, batches: int, batches_per_epoch: int) -> None:
    """Let ``trainer.fit`` begin in ``epoch`` after ``batches`` of its batches; call before its loops set up data.

    With all batches of the epoch done, validation (where it is due) and the end of the epoch come first: the position
    of a run that was stopped in its validation. The loader has to begin at the same position by itself.

    Args:
        trainer: that has not begun to fit.
        epoch: 0-based; so many epochs are closed.
        batches: of this epoch, 0 to ``batches_per_epoch``.
        batches_per_epoch: of the training loader.
    """
    if epoch == 0 and batches == 0:
        return
    state = trainer.fit_loop.state_dict()
    closed = _counts(epoch)
    opened = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
    state["epoch_progress"] = _both(opened if batches else closed)
    state["epoch_loop.batch_progress"] = {
        "total": _counts(epoch * batches_per_epoch + batches),
        "current": _counts(batches),
        "is_last_batch": batches == batches_per_epoch,
    }
    if batches == batches_per_epoch:  # begun but not over: Lightning then validates before it goes on
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        state["epoch_loop.val_loop.batch_progress"] = {**_both(begun), "is_last_batch": False}
    trainer.fit_loop.load_state_dict(state)


def _counts(value: int) -> dict[str, int]:
    return {name: value for name in ("ready", "started", "processed", "completed")}


def _both(counts: dict[str, int]) -> dict[str, Any]:
    return {"total": dict(counts), "current": dict(counts)}
