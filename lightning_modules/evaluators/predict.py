"""Predictions for images without labels."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import Annotated

import torch

from lightning_modules.evaluators.base import EvaluationData, Evaluator, placed
from lightning_modules.evaluators.result import Evaluation
from lightning_modules.network import Network
from lightning_modules.precision import at_least_float32

FORMULA_STARTS = ("=", "+", "-", "@", "\u2212")  # and what Unicode holds equal to one; \u2212 is the minus of text
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # change the direction of what follows


class Predict(Evaluator):
    """Writes ``predictions.csv``: path, predicted class, its probability, then the runners-up.

    The path opens the image: it is the one below the folder, byte for byte, whatever stands in it. Where a spreadsheet
    would read it as a formula, ``./`` stands before it, which names the same file. A class name has ``'`` before it
    there, and escapes in place of controls.

    Args:
        top: how many classes are listed for each image.
    """

    reads = "unlabelled"
    reads_logits = True

    def __init__(self, *, top: Annotated[int, "x >= 1"] = 5) -> None:
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
        # A name that is not UTF-8 is written as it is on the disk. All cells are in quotes, because where a spreadsheet
        # takes ; for the separator, it would cut a name there and read the rest as a cell.
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow(["path", *(f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability"))])
            for batch in data.batches:
                batch = placed(batch, network)
                values, classes = at_least_float32(network(batch.image).class_scores).softmax(1).topk(top)
                for index, row_values, row_classes in zip(
                    batch.index.tolist(), values.tolist(), classes.tolist(), strict=True
                ):
                    pairs = zip(row_classes, row_values, strict=True)
                    cells = [cell for c, v in pairs for cell in (name_cell(data.classes[c]), f"{v:.6f}")]
                    writer.writerow([path_cell(names[index]), *cells])
                    rows += 1
        return rows


def path_cell(path: str) -> str:
    """A relative path that opens the same file and that no spreadsheet reads as a formula.

    Example:
        >>> path_cell("-12.png"), path_cell("below/-12.png")
        ('./-12.png', 'below/-12.png')
    """
    return f"./{path}" if _is_formula(path) else path


def name_cell(name: str) -> str:
    """A class name that no spreadsheet reads as a formula, on one line."""
    visible = "".join(letter.encode("unicode_escape").decode() if _is_control(letter) else letter for letter in name)
    return f"'{visible}" if _is_formula(visible) else visible


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run it: by its first visible character, or since it begins with a tab or a line end."""
    first = next((letter for letter in text if letter.isprintable() and not letter.isspace()), "")
    return text.startswith(("\t", "\r", "\n")) or unicodedata.normalize("NFKC", first) in FORMULA_STARTS


def _is_control(letter: str) -> bool:
    """Controls, line ends, halves of characters, and what turns the direction of a text; no space is among them."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in TURNS
