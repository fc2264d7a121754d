"""The finite check: nothing that is not a number reaches the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.step import StepResult


class NonFiniteError(RuntimeError):
    """A loss term or the gradient norm is NaN or infinite; raised before the update."""


def check_finite(result: StepResult, gradient_norm: Tensor | None, epoch: int, update: int) -> None:
    """Raise before the update when a term or the gradient norm is not finite.

    One host read: all scalars are looked at together, and only a failure reads more.

    Raises:
        NonFiniteError: naming term, step and the sample indices whose own loss is not finite.
    """
    values = list(result.terms.values())
    if gradient_norm is not None:
        values.append(gradient_norm)
    if bool(torch.isfinite(torch.stack(values).sum() if len(values) > 1 else values[0])):
        return
    names = [name for name, value in result.terms.items() if not bool(torch.isfinite(value))]
    what = f"term {', '.join(names)}" if names else "gradient norm"
    raise NonFiniteError(
        f"the {what} is not finite in epoch {epoch}, update {update}; the weights are those before this update. "
        f"{_samples(result)}Lower optimizer.lr, clip with task.clip_norm=1.0, or look at these images"
    )


def _samples(result: StepResult) -> str:
    """Indices (positions in the training set) of samples with a non-finite loss of their own."""
    found: list[int] = []
    for batch, losses in zip(result.batches, result.losses, strict=True):
        for loss in losses.values():
            if loss.ndim == 1:
                found += batch.index[~torch.isfinite(loss)].tolist()
    if not found:
        return ""
    shown = ", ".join(str(i) for i in dict.fromkeys(found[:8]))
    return f"Samples with such a loss: {shown}{', ...' if len(found) > 8 else ''} ({len(found)} in all). "
