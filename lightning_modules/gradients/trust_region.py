"""A correction of a gradient, held within a share of it, and a record of what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from kernels.batch import Step


@torch.no_grad()
def add_correction(weights: Iterable[nn.Parameter], correction: Sequence[Tensor], max_ratio: float | None) -> Tensor:
    """Add a correction to the gradients in their place, scaled down where it is longer than ``max_ratio`` of them.

    One that is not finite adds nothing: gradients stay as they are, bit for bit.

    Args:
        weights: with the direct gradient in ``grad``.
        correction: one tensor for each of them.
        max_ratio: largest norm of the correction, over all weights together, in norms of the direct gradient; None for
            no bound.

    Returns:
        ``[3]`` in float64: the ratio of the norms as added, whether the bound scaled it down, whether it was finite.
    """
    weights = list(weights)
    direct = _norm([p.grad for p in weights if p.grad is not None], correction)
    norm = _norm(correction, correction)
    allowed = norm if max_ratio is None else max_ratio * direct
    known = norm.isfinite()
    scale = torch.where(known & (norm > allowed), allowed / norm, 1.0)
    for p, part in zip(weights, correction, strict=True):
        added = torch.where(known, scale * part, 0.0).to(part.dtype)
        if p.grad is not None:
            p.grad += added
        elif added.any():  # only the correction reaches it; what nothing reaches stays without a gradient
            p.grad = added
    ratio = torch.where(known & (direct > 0), scale * norm / direct, 0.0)
    return torch.stack([ratio, (scale < 1).double(), known.double()])


def _norm(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """Over all of them together, in float64, in which no finite number of float32 squares to infinity."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else like[0].new_zeros((), dtype=torch.float64)


class Corrections(nn.Module):
    """Sums over updates with a correction: counted where it is added, added up when the update has happened.

    ``epoch_sums`` and ``run_sums`` hold (updates, ratios, updates scaled down, samples left out, samples, updates that
    were changed). Both persistent, so that a resumed run reports what the uninterrupted one would.
    """

    epoch_sums: Tensor
    run_sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("epoch_sums", "run_sums"):
            self.register_buffer(name, torch.zeros(6, dtype=torch.float64))
        self._update, self._pending = -1, torch.zeros(0)  # of this one update; nothing that is saved

    def count(self, step: Step, added: Tensor, left_out: Tensor) -> None:
        """One update.

        Args:
            step: where training stands.
            added: what ``add_correction`` returned.
            left_out: ``[2]`` samples that had no part in the correction, and all of them, over all processes.
        """
        ratio, scaled, known = added.unbind()
        some, samples = left_out.double().unbind()
        lost = torch.where(known > 0, some, samples)
        self._update = step.update
        self._pending = torch.stack([torch.ones_like(ratio), ratio, scaled, lost, samples, (ratio > 0).double()])

    def commit(self, step: Step) -> None:
        """Close an update."""
        if self._update == step.update:
            self.epoch_sums += self._pending
            self.run_sums += self._pending
        self._update = -1

    def read(self) -> dict[str, float]:
        """Of the epoch, which is reset."""
        found = _means(self.epoch_sums)
        self.epoch_sums.zero_()
        return found

    def report(self) -> dict[str, float]:
        """Of the run."""
        return _means(self.run_sums)

    def acted(self) -> bool:
        return bool(self.run_sums[5] > 0)


def _means(sums: Tensor) -> dict[str, float]:
    """Empty without an update that was corrected."""
    updates, ratio, scaled, lost, samples, _ = sums.tolist()
    if not updates:
        return {}
    return {
        "ratio": ratio / updates,
        "scaled_down_share": scaled / updates,
        "left_out_share": lost / max(samples, 1),
    }
