"""The metric-learning preset."""

from __future__ import annotations

from lightning_modules.evaluators.base import Evaluator
from lightning_modules.evaluators.embedding import EmbeddingEvaluator
from lightning_modules.tasks.task import Task


class MetricLearner(Task):
    """Trains an embedding; validation retrieves each image among the others, and MAP@R selects the epoch.

    Musgrave, Belongie, Lim (2020), "A Metric Learning Reality Check", arXiv 2003.08505: validation classes are none of
    those trained on (``data.val_fraction`` of the training classes), and the test classes never select.
    ``data.select_on=test_best`` selects on them all the same, to compare with papers that do.
    """

    @classmethod
    def default_validation(cls) -> dict[str, Evaluator]:
        return {"embedding": EmbeddingEvaluator()}
