"""From per-sample losses to named scalars: the one place where ``[B]`` becomes a scalar."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.distributed import gather, share_of
from lightning_modules.gradients.base import Terms
from lightning_modules.names import unknown_name
from lightning_modules.parts import Parts


def reduce_terms(
    parts: Parts, losses: Terms, coefficients: Terms, outputs: dict[str, Output], batch: Batch, step: Step
) -> Terms:
    """Losses and regularizers as named scalars of this micro-batch's share of the update."""
    share = len(batch) / step.batch_size
    if twice := losses.keys() & parts.regularizers.keys():
        raise ValueError(f"{', '.join(twice)} names a loss term and a regularizer; give the regularizer another name")
    terms: Terms = {}
    for name, loss in losses.items():
        if loss.ndim == 0:
            terms[name] = loss * share
        elif name in coefficients:
            terms[name] = (loss * coefficients[name]).sum()  # a dot product would be cast down by autocast
        else:
            terms[name] = loss.sum() / step.batch_size
    for name, part in parts.regularizers.items():
        value = part(outputs, batch, step)
        if value is not None:
            terms[name] = value.sum() / step.batch_size if value.ndim else value * share
    return terms


@torch.no_grad()
def coefficients_of(parts: Parts, losses: Terms, outputs: dict[str, Output], batch: Batch, step: Step) -> Terms:
    """Coefficients of samples of this process; with those of all processes where the reweighting needs all losses.

    Raises:
        ValueError: the reweighting names a term that the loss does not have, or gives others than ``[B]``.
    """
    losses = {name: loss.detach() for name, loss in losses.items() if loss.ndim == 1}
    own = slice(None)
    if parts.reweighting.needs_all_losses:
        total = step.batch_size
        own = slice(*share_of(total))
        losses = {name: gather(loss, total) for name, loss in losses.items()}
        outputs = {view: _gathered_output(output, total) for view, output in outputs.items()}
        batch = _gathered_batch(batch, total)
    found: Terms = parts.reweighting(losses, outputs, batch, step)
    for name, value in found.items():
        if name not in losses:
            raise ValueError(unknown_name("the reweighting's term", name, losses))
        if value.shape != losses[name].shape:
            raise ValueError(
                f"{type(parts.reweighting).__name__} gives coefficients of shape {list(value.shape)} for the term "
                f"{name}; they must be [{len(losses[name])}], one for each sample"
            )
    return {name: value[own].detach() for name, value in found.items()}


def _gathered_output(output: Output, total: int) -> Output:
    def whole(value: Tensor | None) -> Tensor | None:
        return None if value is None else gather(value, total)

    return Output(logits=whole(output.logits), embedding=whole(output.embedding))


def _gathered_batch(batch: Batch, total: int) -> Batch:
    """The fields of all processes but images, which are not sent."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "extra"}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if batch.partner is not None:  # positions, in the batch of all from here on
        tensors["partner"] = batch.partner + share_of(total)[0]
    small = {name: gather(value, total) for name, value in tensors.items() if value.ndim <= 2}
    dropped = dict.fromkeys(tensors.keys() - small.keys())
    return batch.replace(**{**dropped, **small, "image": batch.image.new_empty((total, 0)), "extra": {}})
