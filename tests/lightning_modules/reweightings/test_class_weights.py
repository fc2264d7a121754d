"""Class weights: closed forms, the counts of the training labels, and a plain loop."""

import copy

import pytest
import torch
from reweighting_bench import check_equal, composed, optimizer_of, plain_loop, train
from torch.nn.functional import cross_entropy

from kernels.batch import Batch, Update
from lightning_modules.part import TrainingData
from lightning_modules.reweightings.class_weights import ClassWeights, class_weights


def data_of(labels, network=None):
    """Training data in two batches."""
    halves = [labels[:5], labels[5:]]
    batches = [Batch(torch.zeros(len(y), 3, 2, 2), torch.tensor(y), torch.arange(len(y))) for y in halves]
    return TrainingData(lambda: batches, network, torch.device("cpu"))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-12])
def test_effective_number_by_hand(beta):
    counts = [5000, 50, 1]
    numbers = [sum(beta**k for k in range(count)) for count in counts]  # (1 - beta^n) / (1 - beta)
    mean = sum(1 / number for number in numbers) / 3
    expected = torch.tensor([1 / number / mean for number in numbers], dtype=torch.float64)
    torch.testing.assert_close(class_weights(torch.tensor(counts), "effective", beta), expected, rtol=1e-9, atol=0)
    if beta > 0.9999:
        torch.testing.assert_close(expected, class_weights(torch.tensor(counts), "inverse"), rtol=1e-7, atol=0)


def test_inverse_frequency_by_hand():
    found = class_weights(torch.tensor([6, 3, 1]), "inverse")
    torch.testing.assert_close(found, torch.tensor([1 / 9, 2 / 9, 6 / 9], dtype=torch.float64) * 3)
    assert class_weights(torch.tensor([4, 4, 4]), "effective").tolist() == [1.0] * 3


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("scheme", ["inverse", "effective"])
def test_ten_steps_equal_a_plain_loop(make_network, make_batch, make_step, make_context, scheme, micro_batches):
    network, plain = make_network(), make_network()
    part = ClassWeights(scheme=scheme, beta=0.8)
    parts = composed(part, make_context(network))
    parts.prepare(data_of([0, 1, 0, 0, 0, 0, 0, 2, 1, 0]))
    train(parts, network, optimizer_of(network), make_batch, make_step, micro_batches=micro_batches)
    raw = [1 / n if scheme == "inverse" else 0.2 / (1 - 0.8**n) for n in (7, 2, 1)]

    def scalar(net, images, batch, survived, update):
        losses = cross_entropy(net(images).logits, batch.label, reduction="none")
        return sum(3 * raw[y] / sum(raw) * loss for y, loss in zip(batch.label.tolist(), losses, strict=True)) / 8

    plain_loop(plain, make_batch, scalar)
    check_equal(network, plain)
    assert part.counts.counts.tolist() == [7, 2, 1], "updates do not change them"


def test_without_prepare_classes_count_as_they_come(make_network, make_context, make_step):
    part, step = ClassWeights(scheme="inverse"), make_step(make_network(), batch_size=4)
    part.setup(make_context(make_network()))
    batch = Batch(torch.zeros(4, 0), torch.tensor([0, 0, 0, 1]), torch.arange(4))
    losses = {"a": torch.ones(4)}
    assert part(losses, {}, batch, step)["a"].tolist() == [0.25] * 4
    part.commit(Update({}, batch), step)
    assert part.counts.counts.tolist() == [3, 1, 0]
    expected = torch.tensor([1, 1, 1, 3]) * 3 / 7 / 4  # the third class counts as one of one
    torch.testing.assert_close(part(losses, {}, batch, step)["a"], expected)
    soft = batch.replace(label=torch.tensor([[0.5, 0.5, 0.0]] * 4))
    part.commit(Update({}, soft), step)
    assert part.counts.counts.tolist() == [5, 3, 0]


def test_a_soft_label_has_the_mixture(make_network, make_context, make_step):
    part, step = ClassWeights(scheme="inverse"), make_step(make_network(), batch_size=2)
    part.setup(make_context(make_network()))
    part.prepare(data_of([0, 1, 0, 0, 0, 0, 0, 2, 1, 0]))
    w = part.weight_of_classes()
    batch = Batch(torch.zeros(2, 0), torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 1.0]]), torch.arange(2))
    found = part({"a": torch.ones(2, dtype=torch.float64)}, {}, batch, step)["a"]
    expected = torch.stack([0.3 * w[0] + 0.7 * w[1], w[2]]) / 2
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)


def test_counts_travel_in_the_state(make_network, make_context):
    part, fresh = ClassWeights(), ClassWeights()
    for one in (part, fresh):
        one.setup(make_context(make_network()))
    part.prepare(data_of([0, 1, 0, 0, 0, 0, 0, 2, 1, 0]))
    fresh.load_state_dict(copy.deepcopy(part.state_dict()))
    assert fresh.counts.prepared and torch.equal(fresh.weight_of_classes(), part.weight_of_classes())
    batch = Batch(torch.zeros(2, 0), torch.tensor([1, 1]), torch.arange(2))
    fresh.commit(Update({}, batch), type("Step", (), {"batch_size": 2}))
    assert fresh.counts.counts.tolist() == [7, 2, 1], "a resumed run does not count on"
    part.prepare(data_of([2] * 10))
    assert part.counts.counts.tolist() == [0, 0, 10], "a second look begins again"


def test_refusals():
    with pytest.raises(ValueError, match="beta=1.0 is out of range; allowed: 0 <= beta < 1"):
        ClassWeights(beta=1.0)
