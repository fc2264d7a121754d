"""The finite check: nothing that is not a number reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.step import StepResult


class NonFiniteError(RuntimeError):
    """A loss term or the gradient norm is NaN or infinite; raised before the update."""


def check_finite(result: StepResult, gradient_norms: Sequence[Tensor], epoch: int, update: int) -> None:
    """Raise before the update when a term or a gradient norm is not finite.

    One host read: all scalars are summed on the device, and only a failure reads more.

    Args:
        result: of the step.
        gradient_norms: scalars, of single tensors or of the whole gradient.
        epoch: 0-based, for the message.
        update: 0-based, for the message.

    Raises:
        NonFiniteError: naming term, step and the sample indices whose own loss is not finite.
    """
    values = [*result.terms.values(), *gradient_norms]
    if math.isfinite(torch.stack(values).sum().item()):
        return
    names = [name for name, value in result.terms.items() if not math.isfinite(value.item())]
    if not names and all(math.isfinite(norm.item()) for norm in gradient_norms):
        return  # finite numbers whose sum is not
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
