"""Nearest class mean against a loop, with classes that training lacks, and the file it leaves."""

import pytest
import torch

from kernels.batch import Batch
from kernels.wilson import wilson_interval
from lightning_modules.class_means import load_class_means
from lightning_modules.evaluators.base import EvaluationData, evaluate_all
from lightning_modules.evaluators.classification import ClassificationEvaluator
from lightning_modules.evaluators.nearest_mean import NearestMean, nearest
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.frozen import state_digest
from lightning_modules.heads.embedding import Embedding

LABELS = torch.arange(60) % 3
IMAGES = 0.9 * torch.rand(60, 3, 5, 5, generator=torch.Generator().manual_seed(0))
IMAGES[torch.arange(60), LABELS] += 0.1  # a class is a little more of one colour


def batches(start, stop, size):
    rows = torch.arange(start, stop)
    return [Batch(IMAGES[part], LABELS[part], part) for part in rows.split(size)]


def data(size=7, **facts):
    return EvaluationData(batches(0, 20, size), ("a", "b", "c"), train=lambda: batches(20, 60, size), **facts)


@pytest.fixture
def network(make_network):
    return make_network(dtype=torch.float32, batch_norm=True)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_each_image_has_the_class_of_the_nearest_mean(network, metric, size):
    found = NearestMean(metric=metric)(network, data(size)).metrics
    with torch.no_grad():
        features = network.eval()(IMAGES).features.double()
    means = [features[20:][LABELS[20:] == c].mean(0) for c in range(3)]
    right = 0
    for i in range(20):
        x = features[i]
        if metric == "cosine":
            scores = [float(x @ m / x.norm() / m.norm()) for m in means]
        else:
            scores = [-float((x - m).norm()) for m in means]
        right += scores.index(max(scores)) == int(LABELS[i])
    low, high = wilson_interval(right, 20)
    assert found == {"accuracy": right / 20, "accuracy_low": low, "accuracy_high": high, "images": 20}
    assert 0.4 < found["accuracy"] < 1, "neither chance nor trivial"


def test_the_two_metrics_differ_where_lengths_do():
    means = torch.tensor([[1.0, 0.0], [5.0, 3.0]], dtype=torch.float64)
    features, none = torch.tensor([[5.0, 1.0]]), torch.tensor([False, False])
    assert nearest(features, means, none, "cosine").tolist() == [0]
    assert nearest(features, means, none, "euclidean").tolist() == [1]
    assert nearest(features, means, torch.tensor([True, False]), "cosine").tolist() == [1], "it is in no training image"


def test_class_means_are_a_gallery_for_retrieval():
    generator = torch.Generator().manual_seed(0)
    features, means = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (50, 4))
    label = torch.randint(4, (50,), generator=generator)
    vectors, labels = torch.cat([features, means]), torch.cat([label, torch.arange(4)])
    is_query = torch.arange(len(vectors)) < len(features)
    found = RetrievalEvaluator(ks=[1, 3])(vectors, labels, is_query=is_query, is_gallery=~is_query)
    right = nearest(features, means, torch.zeros(4, dtype=torch.bool), "cosine") == label
    assert found["recall@1"] == pytest.approx(float(right.double().mean())) and found["recall@3"] > found["recall@1"]


def test_no_head_takes_part(network, make_network):
    wanted = NearestMean()(network, data()).metrics
    network.head = Embedding(4, 3, dim=2)
    assert NearestMean()(network, data()).metrics == wanted


def test_beside_another_evaluator_and_in_a_validation(network):
    both = {"classification": ClassificationEvaluator(), "nearest_mean": NearestMean()}
    network.train()
    done, failed = evaluate_all(both, network, data())
    assert not failed and done["nearest_mean"].metrics == NearestMean()(network, data(brief=True)).metrics
    assert network.training


def test_the_file_it_leaves(network, tmp_path):
    NearestMean(save=True)(network, data(output=tmp_path, key=lambda part: f"key of {part}"))
    digest = state_digest(network.state_dict())
    found = load_class_means(
        tmp_path / "class_means.safetensors", network=digest, data="key of train_eval", width=4, num_classes=3
    )
    assert found.classes == ("a", "b", "c") and int(found.counts.sum()) == 40


def test_what_it_refuses(network):
    with pytest.raises(ValueError, match="nearest_mean takes class means of the training images, and this data has no"):
        NearestMean()(network, EvaluationData(batches(0, 20, 7), ("a", "b", "c")))
    with pytest.raises(ValueError, match="save=true needs a folder to write to"):
        NearestMean(save=True)(network, data())
    with pytest.raises(ValueError, match="there is no image to evaluate; check data.root and data.limit_test"):
        NearestMean()(network, EvaluationData([], ("a", "b", "c"), train=lambda: batches(20, 60, 7)))
    with pytest.raises(ValueError, match="metric='l2' is unknown; choose cosine or euclidean"):
        NearestMean(metric="l2")
