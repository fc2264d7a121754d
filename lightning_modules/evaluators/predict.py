"""Predictions for images without labels."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import Annotated

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData, Evaluator, Measurement
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

    def begin(self, network: Network, data: EvaluationData) -> Measurement:
        """Start the file in ``data.output``, which is written whole or not at all."""
        if data.output is None or data.paths is None:
            raise ValueError("predictions need the images' paths and an output folder")
        return _Rows(data.output / "predictions.csv", data.paths, data.classes, min(self.top, len(data.classes)))


class _Rows(Measurement):
    def __init__(self, path: Path, names: list[str], classes: tuple[str, ...], top: int) -> None:
        self.path, self.names, self.classes, self.top, self.count = path, names, classes, top, 0
        self._partial = path.with_name(f"{path.name}.partial")
        # A name that is not UTF-8 is written as it is on the disk. All cells are in quotes, because where a spreadsheet
        # takes ; for the separator, it would cut a name there and read the rest as a cell.
        self._file = open(self._partial, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self._writer = csv.writer(self._file, quoting=csv.QUOTE_ALL)
        self._writer.writerow(["path", *(f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability"))])

    def add(self, batch: Batch, output: Output) -> None:
        values, classes = at_least_float32(output.class_scores).softmax(1).topk(self.top)
        for index, row_values, row_classes in zip(batch.index.tolist(), values.tolist(), classes.tolist(), strict=True):
            pairs = zip(row_classes, row_values, strict=True)
            cells = [cell for c, v in pairs for cell in (name_cell(self.classes[c]), f"{v:.6f}")]
            self._writer.writerow([path_cell(self.names[index]), *cells])
        self.count += len(batch)

    def result(self) -> Evaluation:
        self._file.close()
        self._partial.replace(self.path)
        return Evaluation(metrics={"images": self.count}, classes=list(self.classes))

    def close(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


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
