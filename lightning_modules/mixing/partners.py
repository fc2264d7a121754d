"""What mixup and CutMix share: the draw of a ratio, the partner, and the label."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from kernels.batch import Batch, Step

#: Keeps these draws apart from those of any other part with the same (seed, update).
MIXING_STREAM = zlib.crc32(b"mixing") << 32


class Pairing:
    """Draws one ratio a batch as a function of (seed, update) and mixes labels with the reversed batch."""

    def __init__(self, alpha: float, prob: float) -> None:
        self.alpha, self.prob = alpha, prob

    def draw(self, step: Step) -> tuple[float, np.random.Generator]:
        """The share of a sample itself in the mixture (1 for an unmixed batch), and the generator to go on with."""
        generator = np.random.Generator(np.random.Philox(key=[MIXING_STREAM ^ step.seed, step.update]))
        mixed = generator.random() < self.prob
        ratio = float(generator.beta(self.alpha, self.alpha)) if mixed else 1.0
        return ratio, generator

    def soft_labels(self, batch: Batch, ratio: float, num_classes: int) -> Batch:
        """The batch with labels ``[B, C]``, its partners and the ratio as fields."""
        size, device = len(batch), batch.image.device
        dtype = torch.promote_types(batch.image.dtype, torch.float32)  # labels of a float64 run are exact
        hard_BC = torch.zeros(size, num_classes, dtype=dtype, device=device).scatter_(1, batch.label[:, None], 1)
        return batch.replace(
            label=ratio * hard_BC + (1 - ratio) * hard_BC.flip(0),
            partner=torch.arange(size - 1, -1, -1, device=device),
            ratio=torch.full((size,), ratio, dtype=dtype, device=device),
        )
