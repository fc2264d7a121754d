"""Accuracy, loss, confusion and the most confident mistakes."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Annotated

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output
from lightning_modules.distributed import total_over_processes
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
from lightning_modules.evaluators.result import Evaluation, Mistake
from lightning_modules.network import Network
from lightning_modules.precision import at_least_float32
from lightning_modules.tasks.meters import Meter


class ClassificationEvaluator(Evaluator):
    """Top-1 and top-5 accuracy, cross-entropy, confusion matrix, per-class accuracy.

    Time and memory grow with the images and with their scores, not with the square of the number of classes. In a
    validation: accuracy, which selects, and cross-entropy, which decides between equal ones.

    Args:
        num_mistakes: how many of the most confident mistakes are kept as pictures.
    """

    reads_logits = True
    selects = ("accuracy", "-loss")
    measures = ("accuracy", "loss")

    def __init__(self, *, num_mistakes: Annotated[int, "x >= 0"] = 24) -> None:
        self.num_mistakes = num_mistakes

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        return _Brief() if data.brief else _Whole(data.classes, self.num_mistakes)


class _Brief(Measurement):
    """Sums that stay on the device until the end."""

    def __init__(self) -> None:
        self._meter = Meter()

    def add(self, batch: Batch, output: Output) -> None:
        logits_BC = at_least_float32(output.class_scores)
        self._meter.add(
            {
                "loss": cross_entropy(logits_BC, batch.label, reduction="none"),
                "accuracy": logits_BC.argmax(1) == batch.label,
                "samples": torch.ones_like(batch.label),
            }
        )

    def result(self) -> Evaluation:
        sums = self._meter.read(total_over_processes)
        samples = sums.pop("samples")
        return Evaluation(metrics={name: value / samples for name, value in sums.items()})


class _Whole(Measurement):
    def __init__(self, classes: tuple[str, ...], num_mistakes: int) -> None:
        self.classes, self.num_mistakes = classes, num_mistakes
        self._pairs: list[Tensor] = []  # label and prediction of each image, as one number
        self._sums: Tensor | None = None
        self._mistakes: list[tuple[float, int, int, Mistake]] = []
        self._number = count()

    def add(self, batch: Batch, output: Output) -> None:
        """Count a batch.

        Raises:
            ValueError: more classes in the data than the head knows.
        """
        classes, logits_BC = len(self.classes), at_least_float32(output.class_scores)
        if logits_BC.shape[1] != classes:
            raise ValueError(
                f"the network has {logits_BC.shape[1]} classes and the data {classes}; evaluate it on the data it "
                "was trained for, or train a new head"
            )
        predicted_B = logits_BC.argmax(1)
        self._pairs.append(batch.label.long() * classes + predicted_B)
        top5 = logits_BC.topk(min(5, classes)).indices.eq(batch.label[:, None]).any(1).sum()
        sums = torch.stack([cross_entropy(logits_BC, batch.label, reduction="sum").double(), top5.double()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._keep_mistakes(batch, logits_BC, predicted_B)

    def result(self) -> Evaluation:
        """Metrics, confusion and mistakes.

        Raises:
            ValueError: no data.
        """
        if self._sums is None:
            raise ValueError("there is no image to evaluate; check data.root and data.limit_test")
        total = sum(map(len, self._pairs))
        confusion = _counts(torch.cat(self._pairs), len(self.classes))
        loss, top5 = self._sums.tolist()
        metrics = {"accuracy": float(confusion.trace()) / total, "top5_accuracy": top5 / total, "loss": loss / total}
        return Evaluation(
            metrics={**metrics, "images": total},
            confusion=confusion,
            classes=list(self.classes),
            mistakes=[mistake for *_, mistake in sorted(self._mistakes, key=lambda item: (-item[0], item[1]))],
        )

    def _keep_mistakes(self, batch: Batch, logits_BC: Tensor, predicted_B: Tensor) -> None:
        """Merge this batch's most confident mistakes into the heap of the best ``num_mistakes``."""
        kept = self._mistakes
        confidence_B = logits_BC.softmax(1).amax(1).masked_fill(predicted_B == batch.label, -1.0)
        values, positions = confidence_B.topk(min(self.num_mistakes, len(batch)))
        for value, position in zip(values.tolist(), positions.tolist(), strict=True):
            if value < 0 or (len(kept) == self.num_mistakes and value <= kept[0][0]):
                break
            mistake = Mistake(
                picture=_picture(batch.image[position]),
                true=self.classes[int(batch.label[position])],
                predicted=self.classes[int(predicted_B[position])],
                confidence=value,
                index=int(batch.index[position]),
            )
            push = heapq.heappush if len(kept) < self.num_mistakes else heapq.heapreplace
            push(kept, (value, -mistake.index, -next(self._number), mistake))  # an image may come twice


def _counts(pair_N: Tensor, classes: int) -> csr_array:
    """How often each pair ``label * classes + prediction`` occurs, ``[C, C]``."""
    pair_P, count_P = (found.cpu().numpy() for found in pair_N.unique(return_counts=True))
    return csr_array((count_P, np.divmod(pair_P, classes)), shape=(classes, classes))


def _picture(image_3HW: Tensor) -> np.ndarray:
    pixels = image_3HW.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()
