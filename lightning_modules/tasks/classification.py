"""The classification preset."""

from __future__ import annotations

from lightning_modules.evaluators.base import Evaluator
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.tasks.task import Task


class Classification(Task):
    """One label an image; validation accuracy selects the epoch, then validation loss."""

    @classmethod
    def default_validation(cls) -> dict[str, Evaluator]:
        return {"classification": ClassificationEvaluator(num_mistakes=0)}
