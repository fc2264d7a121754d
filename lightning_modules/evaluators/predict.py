"""Predictions for images without labels."""

from __future__ import annotations

import csv

import torch

from lightning_modules.evaluators.base import EvaluationData, Evaluator, device_of
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.network import Network
from lightning_modules.precision import at_least_float32

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Predict(Evaluator):
    """Writes ``predictions.csv``: path, predicted class, its probability, then the runners-up.

    Args:
        top: how many classes are listed for each image.
    """

    reads = "unlabelled"

    def __init__(self, *, top: int = 5) -> None:
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.top = top

    @torch.inference_mode()
    def __call__(self, network: Network, data: EvaluationData) -> Evaluation:
        """Predict every image and write the file into ``data.output``."""
        if data.output is None or data.paths is None:
            raise ValueError("predictions need the images' paths and an output folder")
        device, was_training = device_of(network), network.training
        network.eval()
        top, rows = min(self.top, len(data.classes)), 0
        with open(data.output / "predictions.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *(f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability"))])
            for batch in data.batches:
                batch = batch.to(device)
                values, classes = at_least_float32(network(batch.image).class_scores).softmax(1).topk(top)
                for index, row_values, row_classes in zip(
                    batch.index.tolist(), values.tolist(), classes.tolist(), strict=True
                ):
                    pairs = zip(row_classes, row_values, strict=True)
                    cells = [cell for c, v in pairs for cell in (_safe(data.classes[c]), f"{v:.6f}")]
                    writer.writerow([_safe(data.paths[index]), *cells])
                    rows += 1
        network.train(was_training)
        return Evaluation(metrics={"images": rows}, classes=list(data.classes))


def _safe(text: str) -> str:
    """A cell that no spreadsheet reads as a formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
