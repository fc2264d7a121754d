"""The metric-learning task: what validation measures, and which epoch it keeps."""

import math

import pytest
import torch

from kernels.batch import Output
from kernels.embedding_statistics import tolerance, uniformity
from lightning_modules.evaluators.retrieval import RetrievalEvaluator
from lightning_modules.heads.embedding import Embedding
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.part import Context
from lightning_modules.parts import Parts
from lightning_modules.tasks.metric_learning import MetricLearner


@pytest.fixture
def task(make_network):
    def make(roles=None):
        network = make_network(dtype=torch.float32)
        network.head = Embedding(4, 3, dim=3)
        context = Context(3, 40, 2, 2, network, val_is_query=roles)
        return MetricLearner(network, Parts(Contrastive(), head=network.head), None, None, context)

    return make


def validate(task, make_batch, index=range(24)):
    task.on_validation_start()
    for start in range(0, len(index), 10):
        batch = make_batch(list(index)[start : start + 10], dtype=torch.float32)
        task.validation_step(batch, 0)
    return {name.removeprefix("val/"): value for name, value in task.validation.columns().items()}


def embeddings(task, make_batch, index=range(24)):
    batch = make_batch(list(index), dtype=torch.float32)
    with torch.no_grad():
        return task.network.eval()(batch.image).embedding, batch.label


def test_validation_is_retrieval_among_all_its_images(task, make_batch):
    learner = task()
    found = validate(learner, make_batch)
    z, y = embeddings(learner, make_batch)
    e = torch.nn.functional.normalize(z.double())
    hits = 0
    for q in range(24):
        best = max((i for i in range(24) if i != q), key=lambda i: float(e[q] @ e[i]))
        hits += int(y[best] == y[q])
    assert found["recall@1"] == pytest.approx(hits / 24)
    whole = RetrievalEvaluator(ks=[1])(z, y)
    assert all(found[name] == pytest.approx(whole[name]) for name in ("map@r", "r_precision"))
    assert found["uniformity"] == pytest.approx(float(uniformity(z)), rel=1e-5)
    assert found["tolerance"] == pytest.approx(float(tolerance(z, y)), rel=1e-5)
    assert learner.validation._under_way == {}, "nothing is left for the next validation"


def test_queries_look_into_the_gallery_only(task, make_batch):
    roles = torch.arange(40) % 4 == 0
    learner = task(roles)
    found = validate(learner, make_batch)
    z, y = embeddings(learner, make_batch)
    query = roles[:24]
    whole = RetrievalEvaluator(ks=[1])(z, y, is_query=query, is_gallery=~query)
    assert found["map@r"] == pytest.approx(whole["map@r"])
    assert found["map@r"] != pytest.approx(RetrievalEvaluator(ks=[1])(z, y)["map@r"])


def test_selection(task):
    learner = task()
    rows = [{"val/map@r": 0.3, "val/recall@1": 0.6}, {"val/map@r": 0.4, "val/recall@1": 0.1}]
    assert learner.validation.rank(rows[0]) < learner.validation.rank(rows[1])
    assert learner.validation.rank({}) is None and learner.validation.rank({"val/map@r": math.nan}) is None
    assert learner.measure_training({"main": Output(embedding=torch.zeros(1, 2))}, None) == {}
