"""Class weights: samples of rare classes weigh more.

Cui, Jia, Lin, Song, Belongie. "Class-Balanced Loss Based on Effective Number of Samples". CVPR 2019, arXiv 1901.05555.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from kernels.batch import Batch, Output, Step, Update
from lightning_modules.class_counts import ClassCounts
from lightning_modules.part import Context, Reweighting, TrainingData

Scheme = Literal["inverse", "effective"]


class ClassWeights(Reweighting):
    """``w_y / B`` for a sample of class y, in every per-sample term; see ``class_weights``.

    The weights average to 1 over the classes, as in the paper, and not over the samples: where classes differ much in
    size, the loss of a batch is smaller than its plain mean. A soft label has the mixture of its classes' weights.

    Counts are taken of the training labels, as they are (noisy ones included), before the first update; a plain loop
    that does not call ``prepare`` counts the classes as they come, and its first update is the plain mean.

    Args:
        scheme: ``inverse`` frequency, or ``effective`` number of samples.
        beta: of ``effective``: 0 is uniform, near 1 it tends to ``inverse``. The paper tries 0.9, 0.99, 0.999, 0.9999.
    """

    counts: ClassCounts

    def __init__(
        self, *, scheme: Literal["inverse", "effective"] = "effective", beta: Annotated[float, "0 <= x < 1"] = 0.999
    ) -> None:
        super().__init__()
        self.scheme, self.beta = scheme, beta

    def setup(self, context: Context) -> None:
        self.counts = ClassCounts(context.num_classes)

    def prepare(self, data: TrainingData) -> None:
        self.counts.prepare(data)

    def forward(
        self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step
    ) -> dict[str, Tensor]:
        weight_C = self.weight_of_classes()
        label = batch.label
        weight_B = weight_C[label] if label.ndim == 1 else label.to(weight_C.dtype) @ weight_C
        return {name: (weight_B / step.batch_size).to(loss_B.dtype) for name, loss_B in losses.items()}

    def weight_of_classes(self) -> Tensor:
        """``[C]`` in float64; 1 on average."""
        return class_weights(self.counts.at_least_one(), self.scheme, self.beta)

    def commit(self, result: Update, step: Step) -> None:
        self.counts.commit(result.batch.label, step)


def class_weights(count_C: Tensor, scheme: Scheme, beta: float = 0.999) -> Tensor:
    """One over the frequency, or over the effective number ``(1 - beta^n) / (1 - beta)``; scaled to a mean of 1.

    Args:
        count_C: ``[C]`` samples of each class, at least 1.
        scheme: ``inverse`` or ``effective``.
        beta: in [0, 1).

    Returns:
        ``[C]`` in float64.

    Example:
        >>> class_weights(torch.tensor([1.0, 3.0]), "inverse")
        tensor([1.5000, 0.5000], dtype=torch.float64)
    """
    number_C = count_C.double()
    if scheme == "effective":
        number_C = -torch.expm1(number_C * math.log(beta)) if beta > 0 else torch.ones_like(number_C)
    weight_C = 1 / number_C
    return weight_C / weight_C.mean()
