"""Relational distillation against plain loops, between features and between embeddings."""

import pytest
import torch
from taught import (
    SEED,
    SIZE,
    batch_of,
    check_same,
    check_ten_steps,
    small,
    teacher,
    together,
    train,
    value_of,
)

from kernels.batch import Output, Step
from lightning_modules.heads.embedding import Embedding
from lightning_modules.losses.contrastive import Contrastive
from lightning_modules.losses.cross_entropy import CrossEntropy
from lightning_modules.parts import Parts
from lightning_modules.regularizers.rkd import RKD
from lightning_modules.teaching.live import Live


def huber(difference):
    size = difference.abs()
    return torch.where(size < 1, 0.5 * size**2, size - 0.5)


def lengths(rows):
    """All distances, with 0 on the diagonal and no gradient there."""

    def between(i, j):
        return (rows[i] - rows[j]).square().sum().sqrt() if i != j else rows.new_zeros(())

    return torch.stack([torch.stack([between(i, j) for j in range(len(rows))]) for i in range(len(rows))])


def distance(s, t):
    d, e = lengths(s), lengths(t)
    pairs = len(s) * (len(s) - 1)
    return huber(d / (d.sum() / pairs) - e / (e.sum() / pairs)).mean()


def cosine(x, i, j, k):
    if i == j or k == j:
        return x.new_zeros(())
    a, b = x[i] - x[j], x[k] - x[j]
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def angle(s, t):
    places = [(i, j, k) for i in range(len(s)) for j in range(len(s)) for k in range(len(s))]
    return sum(huber(cosine(s, *place) - cosine(t, *place)) for place in places) / len(places)


def test_values_by_loops():
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(5, width, dtype=torch.float64, generator=generator) for width in (3, 6))
    term = RKD(weight=0.5, distance_weight=3.0, angle_weight=7.0)
    found = value_of(term, Output(features=s), Output(features=t), torch.zeros(5).long())
    assert float(found) == pytest.approx(0.5 * float(3 * distance(s, t) + 7 * angle(s, t)))


@pytest.mark.parametrize("normalize", ["none", "teacher", "both"])
def test_what_is_brought_to_length_one(normalize):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(4, width, dtype=torch.float64, generator=generator) for width in (3, 6))
    term = RKD(of="embedding", teacher_of="features", normalize=normalize, angle_weight=0.0)
    found = value_of(term, Output(embedding=s), Output(features=t), torch.zeros(4).long())
    u = t / t.square().sum(1, keepdim=True).sqrt() if normalize != "none" else t
    r = s / s.square().sum(1, keepdim=True).sqrt() if normalize == "both" else s
    assert float(found) == pytest.approx(25 * float(distance(r, u)))


def test_ten_steps_equal_a_plain_loop():
    def by_hand(ours, theirs, batch, epoch):
        if epoch >= 4:
            return 0.0
        relations = 25 * distance(ours.features, theirs.features) + 50 * angle(ours.features, theirs.features)
        return 0.02 * min(1, (epoch + 1) / 2) * relations

    check_ten_steps(RKD(weight=0.02, warmup_epochs=2, stop_epoch=4), by_hand)


def test_ten_steps_of_metric_learning():
    """An embedding learns from the features of a classifier of another width, beside a loss on pairs."""
    keys = {"head": Embedding, "head_keys": {"dim": 5}}
    student, plain = small(**keys), small(**keys)
    loss = Contrastive()
    term = RKD(weight=0.1, of="embedding", teacher_of="features", distance_weight=1.0, angle_weight=2.0)
    train(together(term, student, [teacher()], loss=loss), student)

    alone, frozen = together(None, plain, [teacher()], loss=Contrastive()), teacher().eval()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for update in range(10):
        batch = batch_of(update)
        optimizer.zero_grad()
        ours, theirs = plain(batch.image), frozen(batch.image).features.detach()
        step = Step(update // 2, update, seed=SEED, network=plain, forward=plain, batch_size=SIZE)
        value = alone.loss({"main": ours}, batch, step)["contrastive"].mean()
        (value + 0.1 * (distance(ours.embedding, theirs) + 2 * angle(ours.embedding, theirs))).backward()
        optimizer.step()
    check_same(student, plain)


def test_what_the_networks_do_not_give():
    with pytest.raises(
        ValueError, match="term: it reads embedding of the view 'teacher/main', .* gives features, logits"
    ):
        together(RKD(teacher_of="embedding"), small(), [teacher()])
    with pytest.raises(ValueError, match="term needs embedding: choose a head that gives one"):
        networks = {"teacher": Live().teacher([teacher()], [None])}
        Parts(CrossEntropy(), {"term": RKD(of="embedding")}, head=small().head, networks=networks)
