"""Evaluators on networks of any floating type, against plain loops; a file of predictions is whole or not there."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData, placed
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.evaluators.predict import Predict

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def batches() -> list[Batch]:
    """As a loader makes them: float32, eight samples in two batches."""
    image = torch.rand(8, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    index = torch.arange(8)
    return [Batch(image[part], index[part] % 3, index[part]) for part in (slice(0, 5), slice(5, 8))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_images_take_the_type_of_the_network_and_nothing_else_does(make_network: Any, batches: list[Batch], dtype: Any):
    batch = batches[0].replace(clean_image=batches[0].image, second_image=(batches[0].image * 255).byte())
    batch = batch.replace(ratio=torch.rand(5))
    there = placed(batch, make_network(dtype=dtype))
    assert there.image.dtype == there.clean_image.dtype == dtype
    assert there.second_image.dtype == torch.uint8 and there.ratio.dtype == torch.float32
    assert there.label.dtype == there.index.dtype == torch.int64
    assert batch.image.dtype == torch.float32, "the batch itself is left alone"
    assert placed(batch, torch.nn.Identity()).image is batch.image, "nothing to go by without parameters"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_classification_by_plain_loops(make_network: Any, batches: list[Batch], dtype: Any) -> None:
    network = make_network(dtype=dtype).train()
    evaluation = ClassificationEvaluator()(network, EvaluationData(batches, CLASSES))
    assert network.training
    network.eval()
    loss, right, wrong = 0.0, 0, []
    for batch in batches:
        for image, label, index in zip(batch.image, batch.label.tolist(), batch.index.tolist(), strict=True):
            with torch.no_grad():
                scores = network(image[None].to(dtype)).logits[0].tolist()
            shares = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
            loss -= math.log(shares[label]) / 8
            best = max(range(3), key=lambda c: scores[c])
            right += best == label
            if best != label:
                wrong.append((-shares[best], index))
    rel = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert evaluation.metrics["loss"] == pytest.approx(loss, rel=rel)
    if dtype != torch.bfloat16:  # one rounding may decide between two classes there
        assert evaluation.metrics["accuracy"] == right / 8
        assert [mistake.index for mistake in evaluation.mistakes] == [index for _, index in sorted(wrong)]


def test_predictions_of_a_float64_network(make_network: Any, batches: list[Batch], tmp_path: Path) -> None:
    network, paths = make_network(dtype=torch.float64).eval(), [f"{i}.png" for i in range(8)]
    Predict(top=3)(network, EvaluationData(batches, CLASSES, paths=paths, output=tmp_path))
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == paths
    with torch.no_grad():
        scores = network(torch.cat([batch.image for batch in batches]).double()).logits
    for row, one in zip(rows, scores.softmax(1).tolist(), strict=True):
        expected = sorted(zip(one, CLASSES, strict=True), reverse=True)
        assert row[1::2] == [name for _, name in expected]
        assert [float(cell) for cell in row[2::2]] == pytest.approx([share for share, _ in expected], abs=1e-6)


def test_a_failure_half_way_leaves_what_was_there(make_network: Any, batches: list[Batch], tmp_path: Path) -> None:
    def failing() -> Iterator[Batch]:
        yield batches[0]
        raise ValueError("cannot read image b.png")

    network = make_network().train()
    data = EvaluationData(failing(), CLASSES, paths=[str(i) for i in range(8)], output=tmp_path)
    with pytest.raises(ValueError, match="cannot read image b.png"):
        Predict()(network, data)
    assert list(tmp_path.iterdir()) == [] and network.training
    (tmp_path / "predictions.csv").write_text("an earlier run")
    data = EvaluationData(failing(), CLASSES, paths=[str(i) for i in range(8)], output=tmp_path)
    with pytest.raises(ValueError, match="cannot read image b.png"):
        Predict()(network, data)
    assert (tmp_path / "predictions.csv").read_text() == "an earlier run" and len(list(tmp_path.iterdir())) == 1
