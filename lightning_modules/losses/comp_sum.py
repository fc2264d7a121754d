"""Comp-sum losses and their smooth adversarial version.

Mao, Mohri, Zhong. "Cross-Entropy Loss Functions: Theoretical Analysis and Applications". ICML 2023, arXiv 2304.07288.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from kernels.batch import Batch, Output, Step
from kernels.comp_sum import comp_sum, margin_shift
from lightning_modules.part import Loss


class CompSum(Loss):
    """``Phi_tau(sum_{j != y} exp((z_j - z_y) / rho))`` per sample (see ``kernels.comp_sum``).

    With ``nu`` it is the smooth adversarial version: that term on the clean image, and beside it
    ``comp_sum_shift = nu ||D(x') - D(x)||_2``, by how much the attack moves the margins D; the gradient flows through
    both. It then needs an attack, which the paper lets raise that distance: ``attack=pgd attack.objective=margin_shift
    attack.start=normal``. The prediction is that of the clean image, and the images are forwarded as for TRADES.
    Without ``nu`` the loss is that of whatever image the batch shows, an attacked one where there is an attack.

    Soft labels average the losses of the classes.

    Args:
        tau: 0 is the sum of exponentials, 1 cross-entropy, between 1 and 2 generalized cross-entropy, 2 is 1 - p_y,
            whose gradient vanishes at the start of a training with many classes.
        rho: temperature of the logits in the first term; the margin of the adversarial theory.
        nu: weight of the moved margins; the theory asks for at least ``sqrt(C - 1) / rho``, practice takes less.
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        *,
        tau: Annotated[float, "x >= 0"] = 1.5,
        rho: Annotated[float, "x > 0"] = 1.0,
        nu: Annotated[float, "x >= 0"] = 0.0,
    ) -> None:
        super().__init__()
        self.tau, self.rho, self.nu = tau, rho, nu
        if nu:
            self.views, self.prediction = ("clean", "adversarial"), "clean"

    @property
    def refuses(self) -> dict[str, str]:  # type: ignore[override]
        if not self.nu:
            return {}
        return {
            "mixes_features": "the clean and the attacked image are not mixed where the feature maps of the main view "
            "are, and the labels would be those of a mixture"
        }

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        shown_BC = outputs[self.prediction].class_scores
        terms = {"comp_sum": comp_sum(shown_BC, batch.label, tau=self.tau, rho=self.rho)}
        if self.nu:
            moved_B = margin_shift(shown_BC, outputs["adversarial"].class_scores, batch.label)
            terms["comp_sum_shift"] = self.nu * moved_B
        return terms
