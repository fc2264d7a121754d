"""Classification by plain counts, and a cost that does not grow with the square of the classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.batch import Batch, Output
from lightning_modules.evaluators.base import EvaluationData
from lightning_modules.evaluators.classification import ClassificationEvaluator

BATCH, BATCHES = 8, 5


class Known(torch.nn.Module):
    """Scores that a seed gives, by ``Batch.index``, which the image carries."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.register_buffer("scores", torch.randn(BATCH * BATCHES, classes, generator=generator))

    def forward(self, image: torch.Tensor) -> Output:
        return Output(logits=self.scores[image[:, 0, 0, 0].long()])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *made])
        return out


def evaluated(classes: int) -> tuple:
    """The evaluation, the scores and the labels."""
    index = torch.arange(BATCH * BATCHES)
    label = (index * 7919) % classes
    network = Known(classes)
    image = index[:, None, None, None].expand(-1, 3, 2, 2).float()
    batches = [Batch(image[i], label[i], i) for i in index.split(BATCH)]
    names = tuple(f"class {number}" for number in range(classes))
    evaluation = ClassificationEvaluator(num_mistakes=3)(network, EvaluationData(batches, names))
    return evaluation, network.scores, label


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_metrics_are_those_of_plain_counts(classes):
    evaluation, scores, label = evaluated(classes)
    dense = np.zeros((classes, classes), np.int64)
    np.add.at(dense, (label.numpy(), scores.argmax(1).numpy()), 1)
    assert np.array_equal(evaluation.confusion.toarray(), dense) and evaluation.confusion.dtype == np.int64
    assert evaluation.metrics["accuracy"] == int(dense.trace()) / len(label)
    assert evaluation.metrics["images"] == len(label) and type(evaluation.metrics["images"]) is int
    ranked = scores.argsort(1, descending=True)[:, :5]
    assert evaluation.metrics["top5_accuracy"] == sum(map(bool, (ranked == label[:, None]).any(1))) / len(label)
    per_batch = torch.nn.functional.cross_entropy(scores, label, reduction="none").split(BATCH)
    loss = sum(float(part.sum()) for part in per_batch) / len(label)
    assert evaluation.metrics["loss"] == pytest.approx(loss, rel=1e-6)


def test_no_tensor_is_larger_than_the_scores_of_a_batch():
    """A matrix of 10,000 x 10,000 counts would take 800 MB."""
    with Largest() as largest:
        evaluation, scores, _ = evaluated(10_000)
    assert largest.elements <= scores.numel()
    assert evaluation.confusion.shape == (10_000, 10_000) and evaluation.confusion.nnz <= BATCH * BATCHES


def test_no_image_at_all():
    with pytest.raises(ValueError, match="there is no image to evaluate; check data.root and data.limit_test"):
        ClassificationEvaluator()(Known(3), EvaluationData([], ("a", "b", "c")))


def test_an_image_that_comes_twice_makes_two_mistakes():
    network, index = Known(3), torch.zeros(4, dtype=torch.int64)
    wrong = (network.scores[0].argmax() + 1) % 3
    batch = Batch(torch.zeros(4, 3, 2, 2), wrong.expand(4), index)
    evaluation = ClassificationEvaluator(num_mistakes=2)(network, EvaluationData([batch, batch], ("a", "b", "c")))
    assert [mistake.index for mistake in evaluation.mistakes] == [0, 0]
