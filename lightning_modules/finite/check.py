"""The finite check: whether an update may happen, in one host read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.distributed import largest_over_processes, processes
from lightning_modules.step import StepResult


class NonFiniteError(RuntimeError):
    """A loss term or the gradient norm is NaN or infinite; raised before the update."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all processes agree on before an update.

    Attributes:
        ok: terms and gradient norm are finite in every process.
        stop: some process was asked to stop.
        rank: first process whose own terms are not finite; None with one process, or where only the gradient is not.
        loss: of the whole batch, the sum of the terms of all processes; None with one process, which has them all.
    """

    ok: bool
    stop: bool = False
    rank: int | None = None
    loss: float | None = None


def check_finite(result: StepResult, gradient_norms: Sequence[Tensor], stop: bool = False) -> Verdict:
    """Whether the update may happen; the one host read of a step.

    With several processes one small maximum over them makes the decision the same everywhere, and carries a request to
    stop and the loss of each with it.

    Args:
        result: of the step.
        gradient_norms: scalars, of single tensors or of the whole gradient.
        stop: whether this process was asked to stop.
    """
    terms, norms = list(result.terms.values()), list(gradient_norms)
    if processes()[1] > 1:
        return _agree(terms, norms, stop)
    values = torch.stack(terms + norms)
    # A sum is one kernel; finite numbers may have one that is not.
    ok = math.isfinite(values.sum().item()) or bool(values.isfinite().all())
    return Verdict(ok, stop)


def _agree(terms: list[Tensor], norms: list[Tensor], stop: bool) -> Verdict:
    """The verdict over all processes: the largest of (whose terms are broken, gradient broken, stop, losses)."""
    rank, world = processes()
    own = torch.stack(terms)
    flags = torch.zeros(3 + world, device=own.device)
    flags[3:] = -torch.inf  # the loss of a process is the largest at its place, where the others have nothing
    flags[3 + rank] = own.sum()
    flags[0] = ~own.isfinite().all() * (world - rank)  # the largest is that of the first process
    if norms:
        flags[1] = ~torch.stack(norms).isfinite().all()
    if stop:
        flags[2].fill_(1)
    first, gradient, stops, *losses = largest_over_processes(flags).tolist()
    return Verdict(not (first or gradient), bool(stops), world - int(first) if first else None, sum(losses))
