"""CutMix of images and labels."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from kernels.batch import Batch, Step
from lightning_modules.mixing.partners import Pairing
from lightning_modules.part import Context, Mixing


class CutMix(Mixing):
    """A box of the partner's image is pasted in; labels mix by area.

    Yun et al. "CutMix: Regularization Strategy to Train Strong Classifiers". ICCV 2019, arXiv 1905.04899.
    The box has side ``sqrt(1 - r)`` of the image, ``r ~ Beta(alpha, alpha)``, a uniform centre, is clipped at the
    border, and the label uses the area that was pasted.

    Args:
        alpha: concentration of the Beta distribution.
        prob: share of batches that are mixed.
    """

    needs = frozenset({"hard_labels"})

    def __init__(self, *, alpha: Annotated[float, "x > 0"] = 1.0, prob: Annotated[float, "0 <= x <= 1"] = 1.0) -> None:
        super().__init__()
        self.pairing = Pairing(alpha, prob)
        self.num_classes = 0

    def setup(self, context: Context) -> None:
        self.num_classes = context.num_classes

    def mix_batch(self, batch: Batch, step: Step) -> Batch:
        """The batch with pasted boxes and soft labels; unmixed batches get soft labels as well."""
        ratio, generator = self.pairing.draw(step)
        if ratio < 1.0:
            height, width = batch.image.shape[-2:]
            top, bottom, left, right = cut_box(height, width, ratio, generator)
            image = batch.image.clone()
            image[:, :, top:bottom, left:right] = batch.image.flip(0)[:, :, top:bottom, left:right]
            batch = batch.replace(image=image)
            ratio = 1.0 - (bottom - top) * (right - left) / (height * width)
        return self.pairing.soft_labels(batch, ratio, self.num_classes)


def cut_box(height: int, width: int, ratio: float, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box of share ``1 - ratio`` around a uniform centre, clipped at the border."""
    side = (1.0 - ratio) ** 0.5
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(generator.integers(height)), int(generator.integers(width))
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
