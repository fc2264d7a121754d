"""TRADES.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan. "Theoretically Principled Trade-off between Robustness and Accuracy". ICML
2019, arXiv 1901.08573.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.adversarial_losses import trades_kl
from kernels.batch import Batch, Output, Step
from kernels.margin_softmax import class_labels
from lightning_modules.part import Loss
from lightning_modules.precision import at_least_float32


class TRADES(Loss):
    """``CE(f(x), y) + beta KL(f(x) || f(x'))``, x' the attacked image; the gradient flows through both predictions.

    Two terms: ``trades_clean`` and ``trades_robust``. The prediction, and with it the training accuracy, is that of the
    clean image. The paper's attack raises the same divergence: ``attack=pgd attack.objective=kl attack.start=normal``.

    Each image is forwarded once, the clean one first, and each moves running norm statistics once; the official code
    forwards the clean image twice and so moves them three times. Loss and gradient are the same.

    Args:
        beta: weight of the divergence; the paper's 1 / lambda.
    """

    needs = frozenset({"logits", "attack", "hard_labels"})
    views = ("clean", "adversarial")
    prediction = "clean"

    def __init__(self, *, beta: Annotated[float, "x >= 0"] = 6.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, outputs: dict[str, Output], batch: Batch, step: Step) -> dict[str, Tensor]:
        clean_BC = at_least_float32(outputs["clean"].class_scores)
        label_B = class_labels(batch.label, clean_BC)
        return {
            "trades_clean": cross_entropy(clean_BC, label_B, reduction="none"),
            "trades_robust": self.beta * trades_kl(clean_BC, outputs["adversarial"].class_scores),
        }
