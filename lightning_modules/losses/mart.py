"""MART: misclassification-aware adversarial training.

Wang, Zou, Yi, Bailey, Ma, Gu. "Improving Adversarial Robustness Requires Revisiting Misclassified Examples". ICLR 2020.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from kernels.adversarial_losses import mart_terms
from kernels.batch import Batch, Output, Step
from lightning_modules.part import Loss


class MART(Loss):
    """Boosted cross-entropy of the attacked image, and a divergence that weighs more where the clean image is unsure.

    Two terms: ``mart_bce`` and ``mart_kl`` (see ``kernels.adversarial_losses.mart_terms``); the gradient flows through
    all of both. The prediction is that of the attacked image: it is the one that the labels teach, as in adversarial
    training with cross-entropy, so the training accuracy is a robust one and lower than that of TRADES. The official
    attack raises the cross-entropy: ``attack=pgd attack.start=normal``.

    Each image is forwarded once, the clean one first, and both move running norm statistics.

    Args:
        beta: weight of the divergence; 6 in the official function, 5 in its ResNet script.
    """

    needs = frozenset({"logits", "attack", "hard_labels"})
    views = ("clean", "adversarial")
    prediction = "adversarial"

    def __init__(self, *, beta: Annotated[float, "x >= 0"] = 6.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        clean_BC, adversarial_BC = outputs["clean"].class_scores, outputs["adversarial"].class_scores
        boosted_B, kl_B = mart_terms(clean_BC, adversarial_BC, batch.label)
        return {"mart_bce": boosted_B, "mart_kl": self.beta * kl_B}
