"""What evaluators read of a data module."""

from __future__ import annotations

from pathlib import Path

from datamodules.base import ImageData
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.feature_cache import FeatureCache


def test_data(
    module: ImageData, folder: Path, cache: FeatureCache | None = None, checkpoint: str | None = None
) -> EvaluationData:
    """The test part of a data module that is set up, as evaluators read it; embeddings may be kept in a FeatureCache,
    unless only reading tells which images there are. ``checkpoint`` names the network's."""
    return EvaluationData(
        batches=module.test_dataloader(),
        classes=module.classes_of("test"),
        paths=module.test_paths(),
        output=folder,
        train=module.train_eval_dataloader,
        is_query=module.test_is_query,
        picture=module.test_picture,
        key=module.key,
        cache=None if module.leaves_out else cache,
        origin={"checkpoint": checkpoint, "preprocessing": module.preprocessing()},
    )
