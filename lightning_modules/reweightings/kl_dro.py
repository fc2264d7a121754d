"""KL-DRO weights: hard samples weigh exponentially more.

Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311. No code is
public. The numbers are those of ``kernels.dro``; departures and our own choices are listed in docs/reweighting.md.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from kernels.dro import compositional_coefficients, kl_dro_weights, radius_of
from lightning_modules.reweightings.base import BatchWeights, chosen


class KLDRO(BatchWeights):
    """``p_i = exp(l_i / r) / (B u)``: the gradient of ``r log E exp(l / r)``, the worst reweighting of the samples.

    ``level=batch`` takes the mean of the batch for u, so that p is ``softmax(l / r)`` and sums to 1.
    ``level=compositional`` follows it over the updates, ``u <- (1 - rate) u + rate (1/B) sum_i exp(l_i / r)``, which
    removes the bias of a small batch; p sums to the batch's mean over u. With ``rate=1`` the levels are one.

    State: the logarithm U of u in float64, whether it has started, and the last radius. It moves in ``commit`` alone,
    and losses that are not finite never enter it. Where ``target_ess`` changes the radius, what is kept from update to
    update is the objective ``r U``.

    Args:
        level: ``batch`` or ``compositional``.
        radius: r, in units of the loss; ours.
        rate: eta, of ``level=compositional``; ours.
        target_ess: in place of a radius, the share of the batch that counts (``1 / (B sum w^2)`` of the softmax): each
            update takes the radius that gives it.
        start_epoch: 0-based; uniform before it. u starts with the first batch after it.
        max_weight: largest coefficient, as a multiple of 1 / B; what is cut off is not given to others. None for no
            cap.
        term: the term of the loss that decides; None for the sum of all per-sample terms. Its coefficients are those of
            every per-sample term.
    """

    log_tracker: Tensor
    started: Tensor
    last_radius: Tensor
    skipped: Tensor

    def __init__(
        self,
        *,
        level: Literal["batch", "compositional"] = "compositional",
        radius: Annotated[float, "x > 0"] = 1.0,
        rate: Annotated[float, "0 < x <= 1"] = 0.1,
        target_ess: Annotated[float, "0 < x < 1"] | None = None,
        start_epoch: Annotated[int, "x >= 0"] = 0,
        max_weight: Annotated[float, "x >= 1"] | None = None,
        term: str | None = None,
    ) -> None:
        super().__init__(start_epoch=start_epoch)
        self.level, self.radius, self.rate, self.target_ess = level, radius, rate, target_ess
        self.max_weight, self.term = max_weight, term
        self.register_buffer("log_tracker", torch.zeros((), dtype=torch.float64))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("last_radius", torch.full((), radius, dtype=torch.float64))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))
        self._pending: tuple[int, Tensor, Tensor] | None = None  # update, next tracker (NaN: stay), its radius

    def weigh(self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        loss_B = chosen(losses, self.term).double()
        radius = torch.as_tensor(self.radius, dtype=torch.float64, device=loss_B.device)
        if self.target_ess is not None:
            radius = radius_of(loss_B, self.target_ess)
        if self.level == "batch":
            coefficient_B, tracker = kl_dro_weights(loss_B, radius), self.log_tracker
        else:
            before = torch.where(self.started, self.log_tracker * (self.last_radius / radius), torch.nan)
            coefficient_B, tracker = compositional_coefficients(loss_B, before, radius, self.rate)
        if step.pass_number == 0:
            self._pending = step.update, torch.where(loss_B.isfinite().all(), tracker, torch.nan), radius
        return coefficient_B if self.max_weight is None else coefficient_B.clamp(max=self.max_weight / len(loss_B))

    def commit(self, result: Update, step: Step) -> None:
        """Move the tracker to what the forward of this update found."""
        super().commit(result, step)
        if self._pending is not None and self._pending[0] == step.update:
            _, tracker, radius = self._pending
            good = tracker.isfinite()
            self.log_tracker.copy_(torch.where(good, tracker, self.log_tracker))
            self.last_radius.copy_(torch.where(good, radius, self.last_radius))
            self.started |= good
            self.skipped += ~good
        self._pending = None

    def end_epoch(self) -> dict[str, float]:
        """Effective sample size, sum of the coefficients; U and, where it is solved for, the radius, at the end."""
        columns = super().end_epoch()
        if skipped := int(self.skipped):
            warnings.warn(f"KL-DRO left out the losses of {skipped} updates, which were not finite", stacklevel=2)
            self.skipped.zero_()
        if bool(self.started):
            values = {"log_tracker": self.log_tracker} if self.level == "compositional" else {}
            values |= {} if self.target_ess is None else {"radius": self.last_radius}
            columns |= {name: float(value) for name, value in values.items()}
        return columns
