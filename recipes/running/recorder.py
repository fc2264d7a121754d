"""Writes the rows of metrics while a run trains: metrics.csv and TensorBoard."""

from __future__ import annotations

import csv
import io
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_modules.tasks.observer import Observer
from lightning_modules.tasks.task import Task
from recipes.running.directory import write_text


class Recorder(Observer):
    """The rows of the epochs, in metrics.csv and TensorBoard. In the first process only.

    Args:
        directory: the run directory.
        state: of the recorder of the run that is continued; None for a start.
    """

    def __init__(self, directory: Path, state: dict[str, Any] | None = None) -> None:
        self.directory = directory
        state = state or {"rows": [], "best": {}, "best_key": None, "seconds": 0.0}
        self.rows: list[dict[str, float]] = list(state["rows"])
        self.best: dict[str, float] = state["best"]
        self.best_key: tuple[float, ...] | None = None if state["best_key"] is None else tuple(state["best_key"])
        self._seconds_before, self._start = state["seconds"], time.monotonic()
        self._writer: Any = None
        self._log_failed = False

    def state(self) -> dict[str, Any]:
        """Plain data from which another process goes on."""
        return {"rows": self.rows, "best": self.best, "best_key": self.best_key, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes one after another."""
        return self._seconds_before + time.monotonic() - self._start

    def epoch_done(self, task: Task) -> None:
        self.rows.append(task.epoch_metrics)
        write_text(self.directory / "metrics.csv", to_csv(self.rows))
        self._tensorboard(task.epoch_metrics)

    def is_best(self, task: Task) -> bool:
        """Whether the epoch beats the best so far; before any was validated, the newest is the best."""
        row, key = task.epoch_metrics, task.validation.rank(task.epoch_metrics)
        if (key is None and self.best_key is not None) or (
            key is not None and self.best_key is not None and key <= self.best_key
        ):
            return False
        self.best_key, self.best = key, row
        return True

    def _tensorboard(self, row: dict[str, float]) -> None:
        """A log that cannot be written costs one warning, not the run: the same rows stand in metrics.csv."""
        if self._log_failed:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A run that goes on writes over what its predecessor did not save.
                first = int(row["epoch"]) if len(self.rows) > 1 else None
                self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=first)
            for name, value in row.items():
                if name not in ("epoch", "update"):
                    self._writer.add_scalar(name, value, global_step=int(row["epoch"]))
            self._writer.flush()
        except Exception as error:
            self._log_failed = True
            warnings.warn(f"TensorBoard's log ends here: {error}; metrics.csv has every epoch", stacklevel=2)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._writer is not None:
            with suppress(Exception):  # what could not be written was told when it happened
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
