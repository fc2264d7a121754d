"""Predictions for images without labels."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from lightning_modules.evaluators.base import EvaluationData, Evaluator, placed
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.network import Network
from lightning_modules.precision import at_least_float32

FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # spreadsheets read the wide ones, too


class Predict(Evaluator):
    """Writes ``predictions.csv``: path, predicted class, its probability, then the runners-up.

    Args:
        top: how many classes are listed for each image.
    """

    reads = "unlabelled"
    reads_logits = True

    def __init__(self, *, top: int = 5) -> None:
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.top = top

    @torch.inference_mode()
    def __call__(self, network: Network, data: EvaluationData) -> Evaluation:
        """Predict every image and write the file into ``data.output``, whole or not at all."""
        if data.output is None or data.paths is None:
            raise ValueError("predictions need the images' paths and an output folder")
        was_training, partial = network.training, data.output / "predictions.csv.partial"
        network.eval()
        try:
            rows = self._write(partial, network, data, data.paths)
            partial.replace(data.output / "predictions.csv")
        finally:
            partial.unlink(missing_ok=True)
            network.train(was_training)
        return Evaluation(metrics={"images": rows}, classes=list(data.classes))

    def _write(self, path: Path, network: Network, data: EvaluationData, names: list[str]) -> int:
        """Write the file and return the number of images."""
        top, rows = min(self.top, len(data.classes)), 0
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *(f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability"))])
            for batch in data.batches:
                batch = placed(batch, network)
                values, classes = at_least_float32(network(batch.image).class_scores).softmax(1).topk(top)
                for index, row_values, row_classes in zip(
                    batch.index.tolist(), values.tolist(), classes.tolist(), strict=True
                ):
                    pairs = zip(row_classes, row_values, strict=True)
                    cells = [cell for c, v in pairs for cell in (_safe(data.classes[c]), f"{v:.6f}")]
                    writer.writerow([_safe(names[index]), *cells])
                    rows += 1
        return rows


def _safe(text: str) -> str:
    """A cell that no spreadsheet reads as a formula, on one line: a quote before it, an escape for every control."""
    visible = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return f"'{visible}" if visible.lstrip().startswith(FORMULA_STARTS) else visible
