"""Writes what a run leaves while it trains: metrics.csv, TensorBoard, and the checkpoints ``last`` and ``best``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_modules.task import Task
from recipes.checkpoint import save_checkpoint
from recipes.directory import write_text


class Recorder:
    """Called by the task when an epoch is over and its row of metrics is complete (an observer, see ``Task``).

    Args:
        directory: the run directory.
        facts: what every checkpoint holds besides weights: configuration text, classes, preprocessing, ...
        state: gives the training state for ``last.ckpt``.
    """

    def __init__(self, directory: Path, facts: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        self.directory, self.facts, self.state = directory, facts, state
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.best_key: tuple[float, ...] | None = None
        self._writer: Any = None
        (directory / "checkpoints").mkdir()

    def __call__(self, task: Task) -> None:
        """Write the epoch."""
        row = task.epoch_metrics
        self.rows.append(row)
        write_text(self.directory / "metrics.csv", to_csv(self.rows))
        self._tensorboard(row)
        content = {
            **self.facts,
            "epoch": row["epoch"],
            "update": row["update"],
            "metrics": row,
            "network": task.evaluated_network.state_dict(),
        }
        if self._is_best(task.selection(row)):
            self.best = row
            save_checkpoint(self.directory / "checkpoints" / "best.ckpt", content)
        save_checkpoint(self.directory / "checkpoints" / "last.ckpt", {**content, "training": self.state()})

    def _is_best(self, key: tuple[float, ...] | None) -> bool:
        """Whether an epoch beats the best so far; before any was validated, the newest is the best."""
        if key is None:
            return self.best_key is None
        if self.best_key is not None and key <= self.best_key:
            return False
        self.best_key = key
        return True

    def _tensorboard(self, row: dict[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"))
        for name, value in row.items():
            if name not in ("epoch", "update"):
                self._writer.add_scalar(name, value, global_step=int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def to_csv(rows: list[dict[str, float]]) -> str:
    """Rows with the union of their columns, in order of appearance; absent values stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
