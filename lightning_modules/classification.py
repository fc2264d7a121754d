"""The classification task."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Output
from lightning_modules.network import Network
from lightning_modules.precision import at_least_float32
from lightning_modules.task import Task


class Classification(Task):
    """One label an image: accuracy in training; accuracy and cross-entropy in validation, which select the epoch."""

    needs = frozenset({"logits"})
    same_classes = True

    def measure_training(self, outputs: dict[str, Output], batch: Batch) -> dict[str, Tensor]:
        """Correct answers in the view that the loss predicts from; against the larger share where labels are mixed."""
        logits_BC = outputs[self.parts.loss.prediction].class_scores
        label_B = batch.label if batch.label.ndim == 1 else batch.label.argmax(1)
        return {"accuracy": logits_BC.argmax(1) == label_B}

    def measure_validation(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        logits_BC = at_least_float32(network(batch.image).class_scores)
        return {
            "loss": cross_entropy(logits_BC, batch.label, reduction="none"),
            "accuracy": logits_BC.argmax(1) == batch.label,
            "samples": torch.ones_like(batch.label),
        }

    def metrics(self, sums: dict[str, float], samples: float) -> dict[str, float]:
        """Means over the samples."""
        return {name: value / samples for name, value in sums.items()}

    def selection(self, row: dict[str, float]) -> tuple[float, ...] | None:
        """Higher validation accuracy, then lower validation loss."""
        if "val/accuracy" not in row or not math.isfinite(row["val/loss"]):
            return None
        return row["val/accuracy"], -row["val/loss"]
