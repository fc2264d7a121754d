"""What a robustness evaluation shows: tables, the curve over eps, attacked images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.evaluators.result import CaptionedPicture, Curve, PictureRow, Table
from lightning_modules.evaluators.robust_checks import Check
from lightning_modules.evaluators.robust_trial import Cost

WORST = 100  # classes of the table
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """By class ``[C]``: images, those right without an attack, those that withstood all."""

    images: Array
    right: Array
    robust: Array

    @staticmethod
    def of(label: Tensor, right: Tensor, robust: Tensor, classes: int) -> ClassCounts:
        """From rows ``[N]``."""
        counts = (torch.bincount(label[rows], minlength=classes) for rows in (label >= 0, right, robust))
        return ClassCounts(*(count.numpy() for count in counts))

    def robust_accuracy(self) -> Array:
        """Of the classes with images."""
        asked = self.images > 0
        found: Array = self.robust[asked] / self.images[asked]
        return found


def tail_accuracy(accuracy: Array) -> float:
    """RA-Tail-30: mean accuracy of the worst 30 % of the classes, their number rounded half up, at least one.

    Sow, Lin, Wang, Liang. "Doubly Robust Instance-Reweighted Adversarial Training". ICLR 2024, arXiv 2308.00311; the
    rounding and the mean over classes are ours.

    Example:
        >>> tail_accuracy(np.array([0.9, 0.1, 0.5, 0.3]))
        0.1
    """
    count = max((3 * len(accuracy) + 5) // 10, 1)
    return float(np.sort(accuracy)[:count].mean())


def class_table(counts: ClassCounts, names: Sequence[str]) -> dict[str, Table]:
    """The least robust classes first."""
    asked = np.flatnonzero(counts.images)
    order = asked[np.argsort(counts.robust_accuracy(), kind="stable")][:WORST]
    rows: list[list[str | float | int | None]] = [
        [
            names[c],
            float(counts.right[c] / counts.images[c]),
            float(counts.robust[c] / counts.images[c]),
            int(counts.images[c]),
        ]
        for c in order
    ]
    return {"Classes, the least robust first": Table(["class", "clean_accuracy", "robust_accuracy", "images"], rows)}


def attack_table(stages: Sequence[tuple[str, str, int, Cost]], images: int) -> dict[str, Table]:
    """Accuracy after each attack, and what each cost: (name, settings, images still right, cost)."""
    rows: list[list[str | float | int | None]] = [
        [name, settings, standing / images, cost.forwards, cost.backwards, round(cost.seconds, 2)]
        for name, settings, standing, cost in stages
    ]
    columns = ["attack", "settings", "accuracy_after", "forwards", "backwards", "seconds"]
    return {"Accuracy after each attack": Table(columns, rows)}


def check_table(checks: Sequence[Check]) -> dict[str, Table]:
    """Every check with its verdict and reason."""
    return {
        "Checks": Table(
            ["check", "verdict", "found", "reason"], [[one.name, one.verdict, one.found, one.reason] for one in checks]
        )
    }


def eps_curve(standing: dict[float, int], images: int, eps: str) -> dict[str, Curve]:
    """Accuracy over the radius, each measured by itself."""
    lines: dict[str, list[float | None]] = {"PGD": [count / images for count in standing.values()]}
    return {"Accuracy over eps": Curve(list(standing), lines, f"radius in units of eps = {eps}", percent=True)}


def attacked_row(clean: Tensor, attacked: Tensor, names: tuple[str, str], attack: str, index: int) -> PictureRow:
    """An image, what the attack made of it, and the difference around grey, as strong as it can be shown.

    Args:
        clean: ``[C, H, W]`` in [0, 1].
        attacked: the same.
        names: of the true and of the predicted class.
        attack: that felled it.
        index: ``Batch.index``.
    """
    difference = attacked.double() - clean.double()
    factor = 0.5 / max(float(difference.abs().max()), 1e-12)
    pictures = [
        CaptionedPicture(_pixels(clean), names[0]),
        CaptionedPicture(_pixels(attacked), f"taken for {names[1]}"),
        CaptionedPicture(_pixels(0.5 + factor * difference), f"difference × {factor:.3g}"),
    ]
    return PictureRow(pictures, index, attack)


def _pixels(image: Tensor) -> Array:
    pixels = image.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    channels = pixels.shape[2]
    found: Array = (pixels if channels in (1, 3) else pixels[:, :, :1]).numpy()
    return found
