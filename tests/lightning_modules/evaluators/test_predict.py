"""Predictions: ranked as the softmax ranks, and nothing a spreadsheet would run."""

import csv
import math

import pytest

from kernels.batch import Batch
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.predict import Predict


@pytest.fixture
def rows(make_network, make_batch, tmp_path):
    network = make_network().train()
    batch: Batch = make_batch(list(range(4)))
    names = ["=1+1.png", "a.png", "-b.png", "c d.png"]
    data = EvaluationData([batch], ("@cmd", "plain", "third"), paths=names, output=tmp_path)
    metrics = Predict(top=5)(network, data).metrics
    assert metrics == {"images": 4} and network.training, "the mode is put back"
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        return network.eval(), batch, list(csv.reader(file))


def test_rows_are_ranked_softmax(rows):
    network, batch, (header, *lines) = rows
    assert header == ["path", *(f"{what}_{k}" for k in (1, 2, 3) for what in ("class", "probability"))]
    for image, line in zip(batch.image, lines, strict=True):
        scores = [math.exp(score) for score in network(image[None]).logits[0].tolist()]
        expected = sorted((score / sum(scores) for score in scores), reverse=True)
        assert [float(value) for value in line[2::2]] == pytest.approx(expected, abs=1e-6)


def test_cells_are_no_formulas(rows):
    _, _, (_, *lines) = rows
    assert [line[0] for line in lines] == ["'=1+1.png", "a.png", "'-b.png", "c d.png"]
    assert {cell for line in lines for cell in line[1::2]} == {"'@cmd", "plain", "third"}


def test_needs_paths_and_a_place(make_network, make_batch):
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        Predict(top=0)
    with pytest.raises(ValueError, match="predictions need the images' paths and an output folder"):
        Predict()(make_network(), EvaluationData([make_batch([0])], ("a", "b", "c")))
