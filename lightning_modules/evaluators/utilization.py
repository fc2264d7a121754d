"""Utilization: how near the test images come to what training covered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import torch
from torch import Tensor

from kernels.batch import Batch
from kernels.metrix import utilization
from kernels.pairs import unit
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.embedded import Embedded, embedded
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.network import Network


class Utilization(Evaluator):
    """``u(Q, X)``: mean squared distance of each test embedding to the nearest training embedding, on the unit sphere.

    Beside it stands the same with mixed training embeddings added, which can only lower it: what mixing pairs of a
    positive and a negative adds to the space that training covers (Venkataramanan et al. 2022, arXiv 2106.04990).

    Args:
        mixed_per_image: mixes of each training embedding with one of another class, ``lam ~ Beta(2, 2)``.
        seed: of partners and lam.

    Raises:
        ValueError: fewer than one mix an image.
    """

    compares = "none"

    def __init__(
        self, *, mixed_per_image: Annotated[int, "x >= 1"] = 4, seed: Annotated[int, "0 <= x <= 4294967295"] = 0
    ) -> None:
        self.mixed_per_image, self.seed = mixed_per_image, seed

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        """Keep the embeddings of the test images.

        Raises:
            ValueError: there are no training images.
        """
        if data.train is None:
            raise ValueError("utilization compares test images with those of training, and this data has none")
        return _Near(self, network, data, data.train)

    def mixes(self, examples: Tensor, labels: Tensor) -> Tensor:
        """``[M, E]`` unit embeddings between two classes; fewer where draws fell on one class."""
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.arange(len(examples)).repeat_interleave(self.mixed_per_image)
        second = torch.randint(len(examples), (len(first),), generator=generator)
        # Beta(2, 2) is the middle one of three uniform numbers.
        lam = torch.rand(3, len(first), generator=generator).to(examples.dtype).median(0).values
        other = labels[first] != labels[second]
        first, second, lam = first[other], second[other], lam[other, None]
        return unit(lam * examples[first] + (1 - lam) * examples[second])


class _Near(Embedded):
    def __init__(
        self, evaluator: Utilization, network: Network, data: EvaluationData, train: Callable[[], Iterable[Batch]]
    ) -> None:
        super().__init__(network, data)
        self.evaluator, self.network, self.data, self.train = evaluator, network, data, train

    def result(self) -> Evaluation:
        queries = unit(self.whole()[0])
        examples, labels, _ = embedded(self.network, self.data, "train_eval", self.train)
        examples = unit(examples)
        mixed = self.evaluator.mixes(examples, labels)
        return Evaluation(
            metrics={
                "utilization": float(utilization(queries, examples)),
                "utilization_mixed": float(utilization(queries, torch.cat([examples, mixed]))),
                "images": len(queries),
            }
        )
