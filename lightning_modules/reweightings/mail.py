"""MAIL: weights by the margin of the predicted probabilities.

Wang, Liu, Han, Liu, Gong, Niu, Zhou, Sugiyama. "Probabilistic Margins for Instance Reweighting in Adversarial
Training". NeurIPS 2021, arXiv 2106.07904. Official code: QizhouWang/MAIL.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from kernels.batch import Batch, Output, Step
from lightning_modules.precision import at_least_float32
from lightning_modules.reweightings.base import BatchWeights, known


class MAIL(BatchWeights):
    """``factor * sigmoid(slope (PM + bias)) / B``: samples near or beyond the decision boundary weigh more.

    ``PM = max_{k != y} q_k - q_y`` with q the softmax of the logits of the adversarial images, detached. The constant
    factor stands where the paper divides by the mean of the batch, as in the official code; the coefficients need not
    sum to 1.

    Args:
        slope: 10 for MAIL-AT, 2 for MAIL-TRADES.
        bias: added to the margin; -0.5 for MAIL-AT, 0 for MAIL-TRADES.
        factor: 3 in the official code.
        start_epoch: 0-based; uniform before it. Officially after epoch 75 of 120.
        term: the term of the loss that is weighed (MAIL-TRADES: the divergence alone); None for every per-sample term.
    """

    needs = frozenset({"attack", "logits", "hard_labels"})
    views = ("adversarial",)

    def __init__(
        self,
        *,
        slope: Annotated[float, "x > 0"] = 10.0,
        bias: Annotated[float, "finite"] = -0.5,
        factor: Annotated[float, "x > 0"] = 3.0,
        start_epoch: Annotated[int, "x >= 0"] = 0,
        term: str | None = None,
    ) -> None:
        super().__init__(start_epoch=start_epoch)
        self.slope, self.bias, self.factor, self.term = slope, bias, factor, term

    def weighed(self, losses: dict[str, Tensor]) -> list[str]:
        return list(losses) if self.term is None else [known(losses, self.term)]

    def weigh(self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        margin_B = probabilistic_margin(outputs["adversarial"].class_scores, batch.label)
        return self.factor * (self.slope * (margin_B + self.bias)).sigmoid() / len(margin_B)


def probabilistic_margin(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """``max_{k != y} q_k - q_y``, q the softmax: -1 for a certain and right prediction, 1 for a certain and wrong one.

    Args:
        logits_BC: ``[B, C]``, C >= 2.
        label_B: ``[B]`` classes.

    Returns:
        ``[B]`` in at least float32, without gradient.

    Example:
        >>> import torch
        >>> probabilistic_margin(torch.tensor([[0.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0., 1.])
    """
    q_BC = at_least_float32(logits_BC.detach()).softmax(1)
    own_B1 = label_B[:, None]
    return q_BC.scatter(1, own_B1, -1.0).amax(1) - q_BC.gather(1, own_B1).squeeze(1)
