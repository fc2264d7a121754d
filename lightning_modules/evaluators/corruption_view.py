"""What an evaluation under corruptions shows: accuracy by kind, and over severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_modules.evaluators.corruption_images import GROUPS
from lightning_modules.evaluators.result import Curve, Table

Array = np.ndarray[Any, Any]


def kind_table(kinds: Sequence[str], severities: Sequence[int], accuracy_KS: Array) -> dict[str, Table]:
    """One row a kind: its mean over the severities, and each of them."""
    group_of = {kind: group for group, members in GROUPS.items() for kind in members}
    rows: list[list[str | float | int | None]] = [
        [kind.replace("_", " "), group_of[kind], float(row.mean()), *(float(value) for value in row)]
        for kind, row in zip(kinds, accuracy_KS, strict=True)
    ]
    columns = ["kind", "group", "mean_accuracy", *(f"severity_{severity}_accuracy" for severity in severities)]
    return {"Accuracy by kind and severity": Table(columns, rows)}


def severity_curve(
    kinds: Sequence[str], severities: Sequence[int], accuracy_KS: Array, clean: float
) -> dict[str, Curve]:
    """The mean of each group over the severities; severity 0 is the clean image."""
    lines: dict[str, list[float | None]] = {}
    for group, members in GROUPS.items():
        if rows := [k for k, kind in enumerate(kinds) if kind in members]:
            lines[group] = [clean, *(float(value) for value in accuracy_KS[rows].mean(0))]
    positions = [0.0, *(float(severity) for severity in severities)]
    return {"Accuracy over severity": Curve(positions, lines, "severity", percent=True)}
