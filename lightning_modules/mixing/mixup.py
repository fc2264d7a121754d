"""Mixup of images and labels."""

from __future__ import annotations

from typing import Annotated

import torch

from kernels.batch import Batch, Step
from lightning_modules.mixing.partners import Pairing
from lightning_modules.part import Context, Mixing


class Mixup(Mixing):
    """``x = r x_i + (1 - r) x_j``, ``y = r y_i + (1 - r) y_j`` with ``r ~ Beta(alpha, alpha)``, one r a batch.

    Zhang, Cisse, Dauphin, Lopez-Paz. "mixup: Beyond Empirical Risk Minimization". ICLR 2018, arXiv 1710.09412.
    Partners are the batch in reverse order, as in timm; all draws are functions of (seed, update).

    Args:
        alpha: concentration of the Beta distribution; 0.2 on ImageNet, 1.0 on CIFAR.
        prob: share of batches that are mixed.
    """

    needs = frozenset({"hard_labels"})

    def __init__(self, *, alpha: Annotated[float, "x > 0"] = 0.2, prob: Annotated[float, "0 <= x <= 1"] = 1.0) -> None:
        super().__init__()
        self.pairing = Pairing(alpha, prob)
        self.num_classes = 0

    def setup(self, context: Context) -> None:
        self.num_classes = context.num_classes

    def mix_batch(self, batch: Batch, step: Step) -> Batch:
        """The batch with mixed images and soft labels; unmixed batches get soft labels as well."""
        ratio, _ = self.pairing.draw(step)
        if ratio < 1.0:
            batch = batch.replace(image=torch.lerp(batch.image.flip(0), batch.image, ratio))
        return self.pairing.soft_labels(batch, ratio, self.num_classes)
