"""Keeps the batch of an update that is not finite, to be looked at."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from kernels.batch import Batch, Step
from lightning_modules.distributed import processes
from lightning_modules.step import StepResult

MAX_FILES = 3


def save_batch(directory: Path | None, result: StepResult, step: Step, message: str) -> str:
    """Write the failing batch of this process to ``nonfinite_update_<n>.pt``, at most 3 files a run and process.

    A dict of tensors and plain values: images, labels, indices, losses, terms, epoch, update, message.

    Returns:
        A sentence for the message: where the batch is, or why it is not there. Nothing is raised.
    """
    if directory is None:
        return ""
    number, world = processes()
    rank = f"_rank_{number}" if world > 1 else ""
    path = directory / f"nonfinite_update_{step.update}{rank}.pt"
    others = {file for file in directory.glob(f"nonfinite_update_*{rank}.pt") if file != path}
    if len(others) >= MAX_FILES:
        return f" The batch is not saved: {MAX_FILES} files of earlier ones are in {directory}."
    part = path.with_suffix(".pt.part")
    try:
        batch = Batch.join([micro.to("cpu") for micro in result.batches])
        content = {
            "images": batch.image,
            "labels": batch.label,
            "indices": batch.index,
            "losses": [{name: loss.cpu() for name, loss in losses.items()} for losses in result.losses],
            "terms": {name: value.item() for name, value in result.terms.items()},
            "epoch": step.epoch,
            "update": step.update,
            "message": message,
        }
        torch.save(content, part)
        os.replace(part, path)  # never half a file under the name that the message gives
    except (OSError, RuntimeError) as error:  # a full disk must not hide what happened
        with suppress(OSError):
            part.unlink()
        return f" The batch could not be saved to {path}: {error}."
    return f" The batch is in {path}."
